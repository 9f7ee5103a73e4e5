package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"coverslip"
)

// benchPython is the Python that `./setup.sh bench` makes, with the peers in it.
const benchPython = ".tools/bench/bin/python"

// peer is another program that does what we measure, one run each time it is told to.
type peer struct {
	cmd   *exec.Cmd
	tell  io.WriteCloser
	hear  *bufio.Scanner
	notes strings.Builder
}

// startPeer starts a script of bench/. Its first line says that it is ready.
func (e *env) startPeer(script string, args ...string) (*peer, error) {
	if _, err := os.Stat(benchPython); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: "start a peer", Path: script, Err: errors.New("the peers are not installed"), Hint: "run ./setup.sh bench in a checkout (gigabytes: PyTorch is among them), and measure there"}
	}
	return hire(exec.CommandContext(e, benchPython, append([]string{filepath.Join("bench", script)}, args...)...)) //nolint:gosec // a script of ours
}

// hire starts a program that does its work once for every line it is told.
func hire(cmd *exec.Cmd) (*peer, error) {
	p := &peer{cmd: cmd}
	p.cmd.Stderr = &p.notes
	var err error
	if p.tell, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.hear = bufio.NewScanner(out)
	p.hear.Buffer(nil, 16<<20)
	if err := p.cmd.Start(); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: "start a peer", Path: cmd.Path, Err: err}
	}
	if _, err := p.answer(); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// peerRun is what a peer says of one run.
type peerRun struct {
	Images  int       `json:"images"`
	CPU     float64   `json:"cpu_seconds"`
	Seconds float64   `json:"seconds"` // of the clock
	Batch   int       `json:"batch"`
	Values  []float64 `json:"values"` // what it computed, to compare
}

func (r peerRun) perSecond() float64 { return float64(r.Images) / r.CPU }

// run makes it do its work once.
func (p *peer) run() (peerRun, error) { return p.do("go") }

// do tells it a line, which says what.
func (p *peer) do(what string) (peerRun, error) {
	if _, err := fmt.Fprintln(p.tell, what); err != nil {
		return peerRun{}, p.failed(err)
	}
	return p.answer()
}

func (p *peer) answer() (r peerRun, err error) { return r, p.into(&r) }

// ask makes it do its work once, and reads what it says of it.
func (p *peer) ask(into any) error {
	if _, err := fmt.Fprintln(p.tell, "go"); err != nil {
		return p.failed(err)
	}
	return p.into(into)
}

// into reads the next line of JSON; libraries print other things.
func (p *peer) into(v any) error {
	for p.hear.Scan() {
		if line := p.hear.Bytes(); len(line) > 0 && line[0] == '{' {
			return json.Unmarshal(line, v)
		}
	}
	return p.failed(errors.Join(errors.New("it ended early"), p.hear.Err()))
}

func (p *peer) failed(err error) error {
	p.stop()
	return &coverslip.Error{Kind: coverslip.Environment, Op: "run a peer", Path: p.cmd.Args[1], Err: fmt.Errorf("%w; %s", err, p.notes.String())}
}

func (p *peer) stop() {
	_ = p.tell.Close() // it ends when nobody tells it anything more
	_ = p.cmd.Wait()
}
