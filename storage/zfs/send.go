package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/hostfs"
)

// featureVersion is the number that pools have which know features instead.
const featureVersion = "5000"

// poolVersion asks once which version the pool has.
func (b *Backend) poolVersion(ctx context.Context) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.version != "" {
		return b.version, nil
	}
	out, err := b.zpool(ctx, "get", "version", poolOf(b.cfg.Source))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 3 || f[1] != "version" {
			continue
		}
		if f[2] == "-" {
			f[2] = featureVersion
		}
		if _, err := strconv.Atoi(f[2]); err == nil {
			b.version = f[2]
			return b.version, nil
		}
	}
	return "", fmt.Errorf("zpool get version said %q", out)
}

// Format implements storage.NativeStreams: "zfs-" and the pool's version. While
// the pool is not there it is none that anybody has.
func (b *Backend) Format() string {
	v, err := b.poolVersion(context.Background())
	if err != nil {
		return "zfs-unknown"
	}
	return "zfs-" + v
}

// Formats implements storage.NativeStreams.
func (b *Backend) Formats() []string { return []string{b.Format()} }

// sendStep is one zfs send.
type sendStep struct{ from, to string }

// Send implements storage.NativeStreams.
func (b *Backend) Send(ctx context.Context, spec storage.SendSpec) (io.ReadCloser, error) {
	const op = "send snapshot"
	object := spec.Volume + "@" + spec.ID
	s, err := b.startSend(ctx, op, spec)
	if err != nil {
		return nil, b.fail(op, object, err)
	}
	if err := s.Skip(object, spec.Offset); err != nil {
		s.Close()
		return nil, b.fail(op, object, err)
	}
	return s, nil
}

func (b *Backend) startSend(ctx context.Context, op string, spec storage.SendSpec) (*hostfs.Pump, error) {
	if err := errors.Join(checkID("volume", spec.Volume), checkID("snapshot", spec.ID)); err != nil {
		return nil, err
	}
	object := spec.Volume + "@" + spec.ID
	if spec.Format != "" && spec.Format != b.Format() || spec.SizeOnly {
		return nil, &api.Error{Kind: api.Unsupported, Op: op, Object: object, Reason: fmt.Sprintf("this pool sends format %q and not %q, and never without data", b.Format(), spec.Format)}
	}
	unlock, err := b.enter(ctx, spec.Volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	to, err := b.readSnapshot(op, spec.Volume, spec.ID)
	if err != nil {
		return nil, err
	}
	h := header{}
	if h.to, err = strconv.ParseUint(to.GUID, 10, 64); err != nil {
		return nil, err
	}
	steps := []sendStep{{"", b.fullName(to)}}
	if spec.Base != "" {
		base, err := b.readSnapshot(op, spec.Volume, spec.Base)
		if err != nil {
			return nil, err
		}
		if h.base, err = strconv.ParseUint(base.GUID, 10, 64); err != nil {
			return nil, err
		}
		way, err := b.way(ctx, base, to)
		if err != nil {
			return nil, err
		}
		if way != nil {
			steps = way
		}
	}
	h.steps = uint64(len(steps))
	return b.stream(ctx, object, h, steps)
}

// way finds the steps from base to a younger snapshot: back through data sets
// and their origins. nil: there is none, and everything must be sent.
func (b *Backend) way(ctx context.Context, base, to snapFile) ([]sendStep, error) {
	all, err := b.get(ctx, []string{"origin", "createtxg"}, b.cfg.Source+"/t", true)
	if err != nil {
		return nil, err
	}
	from, cur := b.fullName(base), b.fullName(to)
	var steps []sendStep
	for len(steps) < maxSteps {
		tree, _, _ := strings.Cut(cur, "@")
		if tree == b.treeName(base.Tree) {
			if number(all[from]["createtxg"]) >= number(all[cur]["createtxg"]) {
				return nil, nil // the base is the younger one
			}
			steps = append(steps, sendStep{from, cur})
			break
		}
		origin := all[tree]["origin"]
		if !strings.Contains(origin, "@") {
			return nil, nil
		}
		steps = append(steps, sendStep{origin, cur})
		if origin == from {
			break
		}
		cur = origin
	}
	slices.Reverse(steps)
	return steps, nil
}

func (b *Backend) stream(ctx context.Context, object string, h header, steps []sendStep) (*hostfs.Pump, error) {
	b.mark(steps, 1)
	s, err := hostfs.NewPump(ctx, func(err error) error { return b.fail("send snapshot", object, err) }, func(ctx context.Context, w *os.File) error {
		defer b.mark(steps, -1)
		_, err := w.Write(h.bytes())
		for _, st := range steps {
			if err == nil {
				err = sendOne(ctx, w, st)
			}
		}
		return err
	})
	if err != nil {
		b.mark(steps, -1)
	}
	return s, err
}

// mark counts what is being sent.
func (b *Backend) mark(steps []sendStep, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, st := range steps {
		for _, name := range []string{st.from, st.to} {
			if b.sending[name] += n; b.sending[name] == 0 {
				delete(b.sending, name)
			}
		}
	}
}

func sendOne(ctx context.Context, w *os.File, st sendStep) error {
	args := []string{"send", st.to}
	if st.from != "" {
		args = []string{"send", "-i", st.from, st.to}
	}
	cmd := command(ctx, "zfs", args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &said
	if err := cmd.Run(); err != nil {
		return explain(ctx, "zfs", "send", said.String(), err)
	}
	return nil
}
