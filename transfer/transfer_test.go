package transfer

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
	"github.com/drover-data/drover/storage/faulty"
	"github.com/drover-data/drover/storage/memory"
)

// pair is two pools and the way between them.
type pair struct {
	t        *testing.T
	from, to *memory.Backend
	target   *Target
	broken   *faulty.Faults // of the target's pool
	source   *Source
	told     []Progress

	mu    sync.Mutex
	limit []int64                 // guarded by mu; how many bytes the next connections carry; -1: all
	wrap  func(net.Conn) net.Conn // guarded by mu; of the source's end
	done  chan struct{}           // closed when the last session served has ended
}

var head = storage.HeadKey{Volume: "v", Branch: "main"}

func newPair(t *testing.T) *pair {
	p := &pair{t: t, from: memory.New(memory.Config{Name: "from"}), to: memory.New(memory.Config{Name: "to"})}
	wrapped, faults := faulty.Wrap(p.to)
	p.broken = faults
	p.target = &Target{
		Interval: 64,
		Pool:     func(string) (storage.Backend, error) { return wrapped, nil },
		Permit:   func(context.Context, string, Offer) error { return nil },
	}
	p.source = &Source{Backend: p.from, Block: 16, Dial: p.dial, Watch: func(g Progress) { p.told = append(p.told, g) }}
	if _, err := p.from.CreateHead(t.Context(), storage.HeadSpec{Key: head}); err != nil {
		t.Fatal(err)
	}
	return p
}

// snap writes files and takes a snapshot.
func (p *pair) snap(id string, files memory.Files) {
	if err := p.from.Put(head, files); err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.from.Snapshot(p.t.Context(), head, id, nil); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) dial(context.Context) (net.Conn, error) {
	mine, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.target.Serve(context.Background(), theirs, "from")
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = done
	left := int64(-1)
	if len(p.limit) > 0 {
		left, p.limit = p.limit[0], p.limit[1:]
	}
	if p.wrap != nil {
		mine = p.wrap(mine)
	}
	return &cutConn{Conn: mine, left: left}, nil
}

// cutConn breaks after so many bytes were written.
type cutConn struct {
	net.Conn
	left int64
}

func (c *cutConn) Write(b []byte) (int, error) {
	if c.left < 0 {
		return c.Conn.Write(b)
	}
	if int64(len(b)) > c.left {
		n, _ := c.Conn.Write(b[:c.left])
		c.left = 0
		c.Conn.Close()
		return n, io.ErrClosedPipe
	}
	c.left -= int64(len(b))
	return c.Conn.Write(b)
}

func (p *pair) send(id string) (Result, error) {
	return p.source.Send(context.Background(), Job{Offer: Offer{Volume: "v", Branch: "main", Pool: "to", Snapshot: id, Stream: "kernel"}})
}

// same compares a snapshot on both sides.
func (p *pair) same(id string) {
	p.t.Helper()
	a, err := p.from.SnapshotFiles("v", id)
	if err != nil {
		p.t.Fatal(err)
	}
	b, err := p.to.SnapshotFiles("v", id)
	if err != nil {
		p.t.Fatalf("at the target: %v", err)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) {
		p.t.Fatalf("sent %v, arrived %v", a, b)
	}
}

func (p *pair) partials() int {
	c, err := p.to.Recover(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	return len(c.Partial)
}

func TestFullThenIncremental(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.snap("one", memory.Files{"a": strings.Repeat("x", 2000)})
		full, err := p.send("one")
		if err != nil {
			t.Fatal(err)
		}
		p.same("one")
		p.snap("two", memory.Files{"b": "y"})
		next, err := p.send("two")
		if err != nil {
			t.Fatal(err)
		}
		p.same("two")
		if full.Route.Base != "" || next.Route.Base != "one" || full.Sent < 2000 || next.Sent > 200 || next.Resent != 0 {
			t.Errorf("full %+v, then %+v", full, next)
		}
		again, err := p.send("two")
		if err != nil || !again.Route.Have || again.Sent != 0 || again.Copy.ID != "two" || again.Copy.Lineage == "" {
			t.Errorf("again: %+v %v", again, err)
		}
		if last := p.told[len(p.told)-1]; last.Waiting != "" {
			t.Errorf("it ends waiting for %q", last.Waiting)
		}
	})
}

// TestCutAtEveryByte breaks the connection after each number of bytes.
func TestCutAtEveryByte(t *testing.T) {
	total := int64(0)
	for n := int64(0); total == 0 || n <= total; n++ {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			p.snap("one", memory.Files{"a": strings.Repeat("x", 300), "b": "y"})
			counted := &cutConn{left: 1 << 40}
			if total == 0 {
				p.wrap = func(c net.Conn) net.Conn { counted.Conn = c; return counted }
				if _, err := p.send("one"); err != nil {
					t.Fatal(err)
				}
				total = 1<<40 - counted.left
				return
			}
			p.limit = []int64{n, n}
			r, err := p.send("one")
			if err != nil {
				t.Fatalf("cut after %d bytes: %v", n, err)
			}
			p.same("one")
			if p.partials() != 0 {
				t.Errorf("cut after %d bytes: a part is left", n)
			}
			// What is durable is not sent again: between two checkpoints lie 64
			// bytes, and 16 of each block that was on its way.
			if r.Resent > 2*(64+10*16) || r.Sent-r.Resent > 500 {
				t.Errorf("cut after %d bytes: sent %d, %d of them again", n, r.Sent, r.Resent)
			}
			if n < total && r.Attempts < 2 {
				t.Errorf("cut after %d of %d bytes: %d attempts", n, total, r.Attempts)
			}
		})
	}
	if total < 700 {
		t.Errorf("a whole session has %d bytes", total)
	}
}

func TestTargetRestarts(t *testing.T) {
	for _, method := range []string{"Receive", "Receive.Write", "Receive.Checkpoint", "Receive.Commit", "Snapshots", "Info"} {
		for _, after := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				p.snap("one", memory.Files{"a": strings.Repeat("x", 1000)})
				if after {
					p.broken.CrashAfter(method, 1)
				} else {
					p.broken.CrashBefore(method, 1)
				}
				go func() {
					time.Sleep(3 * time.Second)
					p.to = p.to.Reopen()
					p.broken.Restart(p.to)
				}()
				if _, err := p.send("one"); err != nil {
					t.Fatalf("%s, after %v: %v", method, after, err)
				}
				p.same("one")
				if p.partials() != 0 {
					t.Errorf("%s, after %v: a part is left", method, after)
				}
			})
		}
	}
}

func TestSourceRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.snap("one", memory.Files{"a": strings.Repeat("x", 5000)})
		ctx, cancel := context.WithCancel(t.Context())
		p.source.Watch = func(g Progress) {
			if g.Durable > 1000 {
				cancel()
			}
		}
		job := Job{Offer: Offer{Volume: "v", Snapshot: "one", Pool: "to"}, Limit: rate.NewLimiter(1000, 16)}
		if _, err := p.source.Send(ctx, job); !api.Is(err, api.Canceled) {
			t.Fatal(err)
		}
		p.source.Watch = nil
		p.from = p.from.Reopen()
		p.source.Backend = p.from
		r, err := p.source.Send(t.Context(), Job{Offer: job.Offer})
		if err != nil {
			t.Fatal(err)
		}
		p.same("one")
		if r.Sent > 4200 {
			t.Errorf("%d of 5000 bytes were sent after 1000 were durable", r.Sent)
		}
	})
}

// TestSecondSessionTakesOver leaves a session whose source is silent.
func TestSecondSessionTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.snap("one", memory.Files{"a": "x"})
		silent, err := p.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		side, err := Holds(t.Context(), p.from, "v")
		if err != nil {
			t.Fatal(err)
		}
		if err := writeJSON(silent, frameOffer, Offer{Protocol: api.Speaks().Newest, Volume: "v", Snapshot: "one", Pool: "to", Source: side, Stream: "kernel"}); err != nil {
			t.Fatal(err)
		}
		if _, err := readAnswer(silent, silent); err != nil {
			t.Fatal(err)
		}
		first := p.done
		started := time.Now()
		go io.Copy(io.Discard, silent)
		if _, err := p.send("one"); err != nil {
			t.Fatal(err)
		}
		<-first
		if d := time.Since(started); d > time.Second {
			t.Errorf("the first session held the second up for %v", d)
		}
		p.same("one")
	})
}

func TestErrorsThatDoNotPass(t *testing.T) {
	for kind, f := range map[api.Kind]func(*pair){
		api.Exhausted: func(p *pair) { p.broken.Full(500) },
		api.ReadOnly:  func(p *pair) { p.broken.State(api.PoolReadOnly) },
		api.Damaged:   func(p *pair) { p.broken.Fail("Receive.Commit", 1, api.Damaged) },
		api.Denied: func(p *pair) {
			p.target.Permit = func(context.Context, string, Offer) error { return &api.Error{Kind: api.Denied, Reason: "no"} }
		},
		api.Unsupported: func(p *pair) { p.from = nil },
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			p.snap("one", memory.Files{"a": strings.Repeat("x", 3000)})
			f(p)
			if p.from == nil { // no common format, and no portable one in this build
				other := memory.New(memory.Config{Name: "other", Flavour: "x"})
				p.from, p.source.Backend = other, other
				if _, err := other.CreateHead(t.Context(), storage.HeadSpec{Key: head}); err != nil {
					t.Fatal(err)
				}
				p.snap("one", memory.Files{"a": "x"})
			}
			if _, err := p.send("one"); !api.Is(err, kind) {
				t.Errorf("%s: %v", kind, err)
			}
			if kind == api.Exhausted {
				p.broken.Full(-1)
				if _, err := p.send("one"); err != nil {
					t.Fatalf("with space again: %v", err)
				}
				p.same("one")
			}
		})
	}
}

// TestBandwidth sends 10,000 bytes at 100 a second: longer than either side
// waits for a silent one.
func TestBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.snap("one", memory.Files{"a": strings.Repeat("x", 10000)})
		p.source.Block = 1 << 20
		started := time.Now()
		r, err := p.source.Send(t.Context(), Job{Offer: Offer{Volume: "v", Snapshot: "one", Pool: "to"}, Limit: rate.NewLimiter(100, 10)})
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(started); r.Attempts != 1 || d < 99*time.Second || d > 110*time.Second {
			t.Errorf("%d attempts in %v", r.Attempts, d)
		}
	})
}

// slowPool takes a minute to begin and a minute to end.
type slowPool struct{ *memory.Backend }

func (s slowPool) Receive(ctx context.Context, spec storage.ReceiveSpec, format string) (storage.Receive, error) {
	time.Sleep(time.Minute)
	r, err := s.Backend.Receive(ctx, spec, format)
	return slowReceive{r}, err
}

func (s slowPool) Send(ctx context.Context, spec storage.SendSpec) (io.ReadCloser, error) {
	time.Sleep(time.Minute)
	return s.Backend.Send(ctx, spec)
}

type slowReceive struct{ storage.Receive }

func (s slowReceive) Commit(ctx context.Context) (storage.Snapshot, error) {
	time.Sleep(time.Minute)
	return s.Receive.Commit(ctx)
}

func TestSlowIsNotDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.snap("one", memory.Files{"a": "x"})
		p.target.Pool = func(string) (storage.Backend, error) { return slowPool{p.to}, nil }
		p.source.Backend = slowPool{p.from}
		if r, err := p.send("one"); err != nil || r.Attempts != 1 {
			t.Fatalf("%+v %v", r, err)
		}
		p.same("one")
	})
}

// stuckConn takes what is written and passes nothing on.
type stuckConn struct{ net.Conn }

func (c stuckConn) Write(b []byte) (int, error) { return len(b), nil }

func TestSilentPeerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.snap("one", memory.Files{"a": "x"})
		first := true
		p.wrap = func(c net.Conn) net.Conn {
			if first {
				first = false
				return stuckConn{c}
			}
			return c
		}
		started := time.Now()
		r, err := p.send("one")
		if err != nil || r.Attempts != 2 {
			t.Fatalf("%+v %v", r, err)
		}
		if d := time.Since(started); d > 2*stall {
			t.Errorf("noticed after %v", d)
		}
		waited := ""
		for _, g := range p.told {
			if g.Waiting != "" {
				waited = g.Waiting
			}
		}
		if !strings.Contains(waited, "connection to the target") {
			t.Errorf("meanwhile it told %q", waited)
		}
	})
}

// TestVersionsOfTheProtocol: the session is held in the newest version that both know.
func TestVersionsOfTheProtocol(t *testing.T) {
	for _, c := range []struct {
		newest, oldest, want int // want 0: refused
	}{{1, 0, 1}, {1, 1, 1}, {2, 1, 1}, {2, 0, 0}, {7, 2, 0}, {0, 0, 0}} {
		got, err := common(Offer{Protocol: c.newest, Oldest: c.oldest})
		if got != c.want || (c.want == 0) != api.Is(err, api.Unsupported) {
			t.Errorf("%+v: %d, %v", c, got, err)
		}
	}
}

// TestHostileFrames sends what no source sends.
func TestHostileFrames(t *testing.T) {
	offer := func(p *pair, w io.ReadWriter) error {
		side, err := Holds(context.Background(), p.from, "v")
		if err != nil {
			return err
		}
		return writeJSON(w, frameOffer, Offer{Protocol: api.Speaks().Newest, Volume: "v", Snapshot: "one", Pool: "to", Source: side})
	}
	data := func(offset uint64, text string) []byte {
		return append([]byte{byte(offset >> 56), 0, 0, 0, 0, 0, 0, byte(offset)}, text...)
	}
	for name, f := range map[string]func(*pair, net.Conn) error{
		"garbage":          func(_ *pair, c net.Conn) error { _, err := c.Write([]byte("GET / HTTP/1.1\r\n")); return err },
		"no offer":         func(_ *pair, c net.Conn) error { return writeFrame(c, framePing, nil) },
		"an offer too big": func(_ *pair, c net.Conn) error { _, err := c.Write([]byte{1, 0, 0, 0, 255, 255, 255, 255}); return err },
		"no JSON":          func(_ *pair, c net.Conn) error { return writeFrame(c, frameOffer, []byte("{")) },
		"a wrong offset": func(p *pair, c net.Conn) error {
			if err := offer(p, c); err != nil {
				return err
			}
			if _, err := readAnswer(c, c); err != nil {
				return err
			}
			return writeFrame(c, frameData, data(7, "x"))
		},
		"an early end": func(p *pair, c net.Conn) error {
			if err := offer(p, c); err != nil {
				return err
			}
			if _, err := readAnswer(c, c); err != nil {
				return err
			}
			return writeFrame(c, frameEnd, data(9, ""))
		},
		"a frame of the target": func(p *pair, c net.Conn) error {
			if err := offer(p, c); err != nil {
				return err
			}
			if _, err := readAnswer(c, c); err != nil {
				return err
			}
			return writeFrame(c, frameDone, nil)
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			p.snap("one", memory.Files{"a": "x"})
			c, err := p.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			go func() { _ = f(p, c) }()
			synctest.Wait()
			for {
				kind, payload, err := readFrame(c, nil)
				if err != nil {
					t.Fatalf("%s: no error came: %v", name, err)
				}
				if kind == frameAnswer || kind == frameAck {
					continue
				}
				if err := remote(payload); kind != frameError || !api.Is(err, api.Damaged) {
					t.Errorf("%s: frame %d: %v", name, kind, err)
				}
				break
			}
			<-p.done
			if _, err := p.to.SnapshotFiles("v", "one"); !api.Is(err, api.NotFound) {
				t.Errorf("%s: the snapshot is there: %v", name, err)
			}
		})
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 2, '{', '}'})
	f.Add([]byte{3, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 'x'})
	f.Add([]byte{9, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := strings.NewReader(string(in))
		kind, payload, err := readFrame(r, nil)
		if err != nil {
			return
		}
		if kind < frameOffer || kind > framePing || len(payload) > maxPayload || r.Len() != len(in)-headerSize-len(payload) {
			t.Fatalf("frame %d of %d bytes from %d", kind, len(payload), len(in))
		}
		var offer Offer
		var answer Answer
		_, _, _ = decode(payload, &offer), decode(payload, &answer), remote(payload)
	})
}
