package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/btrfs/sendstream"
	"github.com/drover-data/drover/storage/hostfs"
)

const (
	formatV1 = "btrfs-v1"
	formatV2 = "btrfs-v2"
)

func versionOf(format string) (uint32, bool) {
	switch format {
	case formatV1:
		return 1, true
	case formatV2:
		return 2, true
	}
	return 0, false
}

// kernelVersion is the newest protocol this kernel sends.
func kernelVersion() uint32 {
	data, err := os.ReadFile("/sys/fs/btrfs/features/send_stream_version")
	if err == nil && len(bytes.TrimSpace(data)) > 0 && data[0] >= '2' {
		return 2
	}
	return 1
}

// Format implements storage.NativeStreams. Version 1 is preferred: without
// compressed writes version 2 carries the same, and in each of three runs of
// BenchmarkPipeline on 6.18 it was slower (288 against 368 MiB/s in the last).
func (b *Backend) Format() string { return formatV1 }

// Formats implements storage.NativeStreams: receiving is Drover's own work.
func (b *Backend) Formats() []string { return []string{formatV2, formatV1} }

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

func (b *Backend) startSend(ctx context.Context, op string, spec storage.SendSpec) (s sending, err error) {
	if err := errors.Join(hostfs.CheckID("volume", spec.Volume), hostfs.CheckID("snapshot", spec.ID)); err != nil {
		return s, err
	}
	if spec.Format == "" {
		spec.Format = b.Format()
	}
	object := spec.Volume + "@" + spec.ID
	version, ok := versionOf(spec.Format)
	if !ok || version > kernelVersion() {
		return s, &api.Error{Kind: api.Unsupported, Op: op, Object: object, Reason: fmt.Sprintf("this host does not send format %q", spec.Format)}
	}
	p, unlock, err := b.enter(ctx, spec.Volume)
	if err != nil {
		return s, err
	}
	defer unlock()
	if _, err := b.snapshot(p, op, spec.Volume, spec.ID); err != nil {
		return s, err
	}
	fd, err := openSubvol(p.root, hostfs.SnapshotPath(spec.Volume, spec.ID))
	if err != nil {
		return s, err
	}
	var clone []uint64
	var parent, since uint64
	if spec.Base != "" {
		base, err := b.snapshot(p, op, spec.Volume, spec.Base)
		if err != nil {
			unix.Close(fd)
			return s, err
		}
		parent = base.Order // a snapshot's Order is its tree's id
		clone = []uint64{parent}
		since = b.lastWrite(p, spec.Volume, spec.Base) + 1
	}
	s.w = newWindow()
	s.Pump, err = hostfs.NewPump(ctx, func(err error) error { return b.fail(op, object, err) }, func(ctx context.Context, w *os.File) error {
		defer unix.Close(fd)
		if !spec.SizeOnly {
			var reading sync.WaitGroup
			reading.Go(func() { readAhead(ctx, fd, since, s.w) })
			defer reading.Wait()
			defer s.w.end()
		}
		return send(fd, int(w.Fd()), parent, clone, version, spec.SizeOnly)
	})
	if err != nil {
		unix.Close(fd)
	}
	return s, err
}

// lastWrite is the transaction in which a snapshot got its content; 0 if that
// cannot be found out.
func (b *Backend) lastWrite(p *pool, volume, id string) uint64 {
	fd, err := openSubvol(p.root, hostfs.SnapshotPath(volume, id))
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	info, err := getSubvolInfo(fd)
	if err != nil {
		return 0
	}
	return info.Generation
}

// Estimate implements storage.Estimator: the kernel gives the stream with
// lengths in place of data.
func (b *Backend) Estimate(ctx context.Context, spec storage.SendSpec) (int64, error) {
	const op = "estimate stream"
	object := spec.Volume + "@" + spec.ID
	spec.SizeOnly, spec.Offset = true, 0
	s, err := b.startSend(ctx, op, spec)
	if err != nil {
		return 0, b.fail(op, object, err)
	}
	defer s.Close()
	n, err := estimate(s)
	return n, b.fail(op, object, err)
}

func estimate(r io.Reader) (int64, error) {
	sum := int64(sendstream.HeaderSize)
	err := eachCommand(r, func(c *sendstream.Command, n int) error {
		sum += int64(n)
		if c.Op != sendstream.UpdateExtent {
			return nil
		}
		size, err := c.Uint(sendstream.Size)
		sum += int64(size)
		return err
	})
	return sum, err
}

// eachCommand reads a stream without data: f gets each command, which is valid
// until it returns, and its length.
func eachCommand(r io.Reader, f func(c *sendstream.Command, n int) error) error {
	buf := make([]byte, 256<<10)
	var c sendstream.Command
	fill, version := 0, uint32(0)
	for {
		n, err := r.Read(buf[fill:])
		fill += n
		at := 0
		for {
			b := buf[at:fill]
			if version == 0 {
				if len(b) < sendstream.HeaderSize {
					break
				}
				v, err := sendstream.ParseHeader(b)
				if err != nil {
					return err
				}
				version, at = v, at+sendstream.HeaderSize
				continue
			}
			if len(b) < sendstream.CommandSize {
				break
			}
			k, err := sendstream.Length(b)
			if err != nil {
				return err
			}
			if k > len(buf) {
				return fmt.Errorf("%w: a command of %d bytes in a stream without data", sendstream.ErrStream, k)
			}
			if len(b) < k {
				break
			}
			if err := c.Parse(b[:k], version); err != nil {
				return err
			}
			if err := f(&c, k); err != nil {
				return err
			}
			at += k
		}
		fill = copy(buf, buf[at:fill])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
