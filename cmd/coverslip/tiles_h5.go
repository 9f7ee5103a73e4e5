package main

import (
	"coverslip"
	"coverslip/storage/interop"
	"coverslip/tiler"
)

// coordsFlags write a plan for another tool to encode.
type coordsFlags struct {
	Coords string `placeholder:"FILE.h5" help:"Write the plan as a patches file of TRIDENT or CLAM, for that tool to encode the same tiles."`
	Layout string `enum:"trident,clam" default:"trident" help:"Whose patches file --coords is: trident or clam (${default})."`
}

func (c *coordsFlags) writeCoords(slide *tiler.Slide, plan coverslip.Plan) error {
	if c.Coords == "" {
		return nil
	}
	return interop.WriteCoords(c.Coords, interop.Layout(c.Layout), coverslip.Slide{Name: tiler.Name(slide.Path), Width: slide.Width, Height: slide.Height,
		Levels: slide.Levels, ObjectivePower: slide.ObjectivePower}, plan)
}
