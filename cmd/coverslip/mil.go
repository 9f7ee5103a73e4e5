package main

type milCmd struct {
	Heatmap milHeatmapCmd `cmd:"" help:"Show on a slide which tiles a classifier looks at, or what they speak for."`
}
