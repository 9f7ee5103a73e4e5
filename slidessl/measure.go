package slidessl

import (
	"maps"
	"math"
	"slices"

	"coverslip/internal/nn"
)

// normalise divides a vector by its length; zeros stay.
func normalise(v []float32) {
	if length := math.Sqrt(nn.Dot(v, v)); length > 0 {
		for k := range v {
			v[k] = float32(float64(v[k]) / length)
		}
	}
}

// neighbours is the balanced accuracy of naming each row of a by the labels of its 5 nearest rows of b, its
// own slide left out; 0 where there are not two classes. Rows have length one.
func neighbours(a, b []float32, d int, labels []int) float64 {
	const k = 5
	n := len(labels)
	right, of := map[int]float64{}, map[int]float64{}
	s := make([]float32, n*n)
	nn.Gemm(false, true, n, n, d, 1, a, d, b, d, 0, s, n)
	for i, own := range labels {
		if own < 0 {
			continue
		}
		votes := map[int]float64{}
		taken := map[int]bool{i: true}
		for range k {
			best := -1
			for j, v := range s[i*n : (i+1)*n] {
				if !taken[j] && labels[j] >= 0 && (best < 0 || v > s[i*n+best]) {
					best = j
				}
			}
			if best < 0 {
				break
			}
			taken[best] = true
			votes[labels[best]] += float64(s[i*n+best]) + 1
		}
		winner := -1
		for c, v := range votes {
			if winner < 0 || v > votes[winner] || v == votes[winner] && c < winner {
				winner = c
			}
		}
		of[own]++
		if winner == own {
			right[own]++
		}
	}
	if len(of) < 2 {
		return 0
	}
	var mean float64
	for _, c := range slices.Sorted(maps.Keys(of)) { // in order: sums of floats depend on it
		mean += right[c] / of[c] / float64(len(of))
	}
	return mean
}
