package remotetest

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// Fault is what happens to a call.
type Fault int

// The faults.
const (
	None   Fault = iota
	Before       // it fails; of a blob half was read
	After        // it is done, but the answer is lost
)

// ErrFault is the cause of every fault.
var ErrFault = errors.New("a fault of the test")

// Plan says what happens to a call, which is a method's name and its object.
// It is asked from any goroutine.
type Plan func(call string) Fault

// Calls counts them, and does nothing.
func Calls() (Plan, func() int) {
	var mu sync.Mutex
	n := 0
	return func(string) Fault {
			mu.Lock()
			defer mu.Unlock()
			n++
			return None
		}, func() int {
			mu.Lock()
			defer mu.Unlock()
			return n
		}
}

// Crash ends the process with the nth call: nothing succeeds from then on.
func Crash(n int, f Fault) Plan {
	var mu sync.Mutex
	at := 0
	return func(string) Fault {
		mu.Lock()
		defer mu.Unlock()
		switch at++; {
		case at < n:
			return None
		case at == n:
			return f
		}
		return Before
	}
}

// Once lets every call fail the first time.
func Once(f Fault) Plan {
	var mu sync.Mutex
	seen := map[string]bool{}
	return func(call string) Fault {
		mu.Lock()
		defer mu.Unlock()
		if seen[call] {
			return None
		}
		seen[call] = true
		return f
	}
}

// Faulty breaks a store as planned. It is a remote.Collector if that is one.
func Faulty(s remote.Store, p Plan) remote.Store {
	f := &faulty{s, p}
	if c, ok := s.(remote.Collector); ok {
		return &faultyCollector{f, c}
	}
	return f
}

type faulty struct {
	s    remote.Store
	plan Plan
}

func broken(call string) error {
	return &api.Error{Kind: api.Unavailable, Op: call, Reason: "the connection broke", Err: ErrFault}
}

// do makes a call as planned.
func (f *faulty) do(call string, do func() error) error {
	switch f.plan(call) {
	case Before:
		return broken(call)
	case After:
		if err := do(); err != nil {
			return err
		}
		return broken(call)
	}
	return do()
}

func (f *faulty) Info() remote.Info { return f.s.Info() }
func (f *faulty) Close() error      { return f.s.Close() }

func (f *faulty) Check(ctx context.Context, write bool) error {
	return f.do("check", func() error { return f.s.Check(ctx, write) })
}

func (f *faulty) Stat(ctx context.Context, d digest.Digest) (n int64, err error) {
	err = f.do("stat "+string(d), func() error { n, err = f.s.Stat(ctx, d); return err })
	return n, err
}

func (f *faulty) Get(ctx context.Context, d digest.Digest) (r io.ReadCloser, err error) {
	err = f.do("get "+string(d), func() error { r, err = f.s.Get(ctx, d); return err })
	return kept(r, err)
}

func (f *faulty) GetRange(ctx context.Context, d digest.Digest, offset, length int64) (r io.ReadCloser, err error) {
	err = f.do("range "+string(d), func() error { r, err = f.s.GetRange(ctx, d, offset, length); return err })
	return kept(r, err)
}

// kept closes what the caller does not get.
func kept(r io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil && r != nil {
		r.Close()
		r = nil
	}
	return r, err
}

func (f *faulty) Put(ctx context.Context, desc ocispec.Descriptor, content remote.Content, sent func(int64)) error {
	call := "put " + string(desc.Digest)
	switch f.plan(call) {
	case Before:
		_ = f.s.Put(ctx, desc, func() (io.ReadCloser, error) {
			r, err := content()
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(r, desc.Size/2), cut{}), r}, nil
		}, sent)
		return broken(call)
	case After:
		if err := f.s.Put(ctx, desc, content, sent); err != nil {
			return err
		}
		return broken(call)
	}
	return f.s.Put(ctx, desc, content, sent)
}

type cut struct{}

func (cut) Read([]byte) (int, error) { return 0, ErrFault }

func (f *faulty) Manifest(ctx context.Context, d digest.Digest) (desc ocispec.Descriptor, b []byte, err error) {
	err = f.do("manifest "+string(d), func() error { desc, b, err = f.s.Manifest(ctx, d); return err })
	return desc, b, err
}

func (f *faulty) PutManifest(ctx context.Context, desc ocispec.Descriptor, body []byte) error {
	return f.do("put manifest "+string(desc.Digest), func() error { return f.s.PutManifest(ctx, desc, body) })
}

func (f *faulty) Ref(ctx context.Context, name string) (r remote.Ref, err error) {
	err = f.do("ref "+name, func() error { r, err = f.s.Ref(ctx, name); return err })
	return r, err
}

func (f *faulty) Refs(ctx context.Context, prefix string) (r []remote.Ref, err error) {
	err = f.do("refs "+prefix, func() error { r, err = f.s.Refs(ctx, prefix); return err })
	return r, err
}

func (f *faulty) SetRef(ctx context.Context, name string, desc ocispec.Descriptor, expect digest.Digest) error {
	return f.do("set ref "+name, func() error { return f.s.SetRef(ctx, name, desc, expect) })
}

func (f *faulty) DeleteRef(ctx context.Context, name string, expect digest.Digest) error {
	return f.do("delete ref "+name, func() error { return f.s.DeleteRef(ctx, name, expect) })
}

type faultyCollector struct {
	*faulty
	c remote.Collector
}

func (f *faultyCollector) Lease(ctx context.Context) (func(context.Context) error, error) {
	var release func(context.Context) error
	err := f.do("lease", func() (err error) { release, err = f.c.Lease(ctx); return err })
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		return f.do("release", func() error { return release(ctx) })
	}, nil
}

func (f *faultyCollector) Leases(ctx context.Context) (l []time.Time, err error) {
	err = f.do("leases", func() error { l, err = f.c.Leases(ctx); return err })
	return l, err
}

func (f *faultyCollector) Collect(ctx context.Context) (remote.Collection, error) {
	var c remote.Collection
	err := f.do("collect", func() (err error) { c, err = f.c.Collect(ctx); return err })
	if err != nil {
		return remote.Collection{}, err
	}
	return remote.Collection{
		Renew: func(ctx context.Context) error { return f.do("renew", func() error { return c.Renew(ctx) }) },
		End:   func(ctx context.Context) error { return f.do("end", func() error { return c.End(ctx) }) },
	}, nil
}

func (f *faultyCollector) Blobs(ctx context.Context, each func(remote.Blob) error) error {
	return f.do("blobs", func() error { return f.c.Blobs(ctx, each) })
}

func (f *faultyCollector) Delete(ctx context.Context, d digest.Digest) error {
	return f.do("delete "+string(d), func() error { return f.c.Delete(ctx, d) })
}
