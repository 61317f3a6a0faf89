package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	units "github.com/docker/go-units"
	"github.com/dustin/go-humanize"
	"sigs.k8s.io/yaml"

	"github.com/drover-data/drover/api"
)

// print shows a value: as JSON or YAML whole, as a table by rows.
func (t *talk) print(w io.Writer, v any, rows func(w *tabwriter.Writer)) error {
	switch t.output {
	case "json":
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, string(text))
		return err
	case "yaml":
		text, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	case "table":
		tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
		rows(tw)
		return tw.Flush()
	}
	return checkOutput(t.output)
}

// checkOutput refuses an output that print would not know, before anything is done.
func checkOutput(o string) error {
	switch o {
	case "table", "json", "yaml":
		return nil
	}
	return &api.Error{Kind: api.Invalid, Op: "print", Object: o, Reason: "no such output", Next: "use table, json or yaml"}
}

// say confirms what was done: as a sentence, or as the value.
func (t *talk) say(w io.Writer, v any, format string, args ...any) error {
	return t.print(w, v, func(w *tabwriter.Writer) { fmt.Fprintf(w, format+"\n", args...) })
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func sizeText(n int64) string {
	if n < 0 {
		return "unknown"
	}
	return humanize.IBytes(uint64(n))
}

func limitText(n int64) string {
	if n == 0 {
		return "-"
	}
	return sizeText(n)
}

// parseSize reads 10G, 512MiB or a number of bytes, in powers of 1024; empty is 0.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, &api.Error{Kind: api.Invalid, Op: "read size", Object: fmt.Sprintf("%q", s), Reason: "not a size", Next: "write it as in 10G, 512MiB or 1073741824"}
	}
	return n, nil
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return humanize.Time(t)
}

func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, c)
	}
	fmt.Fprintln(w)
}
