package main

type milCmd struct {
	Train     milTrainCmd     `cmd:"" help:"Train classifiers of bags and judge them beside mean pooling and the majority class."`
	Predict   milPredictCmd   `cmd:"" help:"Classify slides."`
	Heatmap   milHeatmapCmd   `cmd:"" help:"Show on a slide which tiles a classifier looks at, or what they speak for."`
	Benchmark milBenchmarkCmd `cmd:"" help:"The five classic sets of MIL, beside what was published."`
}
