package main

import (
	"errors"
	"strconv"

	"coverslip"
)

// budgetFlags say how many of a slide's tiles are encoded.
type budgetFlags struct {
	Budget    budgetValue `placeholder:"N|auto" help:"Encode so many tiles of a slide at most, spread evenly over the tissue; auto: as many as its embedding needs. All, without it."`
	Tolerance float64     `default:"0.09" help:"With --budget auto: the standard error of the embedding to stop at, as a share of its length (${default})."`
	DrawSeed  uint64      `name:"budget-seed" default:"0" hidden:"" help:"Of the order in which tiles are drawn."`
}

// defaultTolerance leaves a centred cosine over 0.98 to the embedding of all tiles: bench/README.md.
const defaultTolerance = 0.09

func (f *budgetFlags) budget() coverslip.Budget {
	switch {
	case f.Budget.auto:
		return coverslip.Budget{Tolerance: f.Tolerance, Seed: f.DrawSeed}
	case f.Budget.tiles > 0:
		return coverslip.Budget{Tiles: f.Budget.tiles, Seed: f.DrawSeed}
	}
	return coverslip.Budget{}
}

// budgetValue is a number of tiles, or auto.
type budgetValue struct {
	tiles int
	auto  bool
}

// UnmarshalText reads a flag.
func (b *budgetValue) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*b = budgetValue{auto: true}
		return nil
	}
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 1 {
		return errors.New("give a number of tiles, or auto")
	}
	*b = budgetValue{tiles: n}
	return nil
}
