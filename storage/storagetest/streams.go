package storagetest

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/storage"
)

func (s suite) stage(t *testing.T) {
	e := s.new(t)
	c := s.opt.Content
	_, err := e.Stage(e.ctx, storage.ReceiveSpec{Volume: "v", ID: "s1", Base: "none"})
	e.is(err, api.NotFound, "Stage on no base")
	spec := storage.ReceiveSpec{Volume: "v", ID: "s1", Note: []byte("n1")}
	st, err := e.Stage(e.ctx, spec)
	e.ok(err, "Stage")
	got, err := c.ReadStage(st)
	e.ok(err, "read the stage")
	e.same(got, Files{}, "a new stage")
	_, err = e.Stage(e.ctx, spec)
	e.is(err, api.InUse, "Stage twice")
	e.ok(c.WriteStage(st, Files{"a": "1"}), "write")
	e.ok(st.Mark(e.ctx, []byte("after a")), "Mark")
	e.ok(c.WriteStage(st, Files{"b": "2"}), "write")
	e.ok(st.Close(), "Close")
	if st, err = e.Stage(e.ctx, spec); err != nil || string(st.Marked()) != "after a" {
		t.Fatalf("Stage again: %v", err)
	}
	e.ok(c.WriteStage(st, Files{"b": "2", "d/c": noise(3, 100<<10)}), "write")
	e.ok(st.Mark(e.ctx, []byte("after c")), "Mark")
	e.wantIDs("v") // not there before Commit
	e, content := e.again()
	if len(content.Partial) != 1 || content.Partial[0].ID != "s1" || content.Partial[0].Volume != "v" {
		t.Fatalf("Recover says %+v can go on", content.Partial)
	}
	if st, err = e.Stage(e.ctx, spec); err != nil || string(st.Marked()) != "after c" {
		t.Fatalf("Stage after a restart: %v", err)
	}
	e.ok(st.Close(), "Close")
	another := spec
	another.ID, another.Stream = "other", "one"
	if st, err = e.Stage(e.ctx, another); err != nil {
		t.Fatal(err)
	}
	e.ok(st.Mark(e.ctx, []byte("of one stream")), "Mark")
	e.ok(st.Close(), "Close")
	another.Stream = "two"
	if st, err = e.Stage(e.ctx, another); err != nil || len(st.Marked()) > 0 {
		t.Fatalf("what arrived by one stream goes on with another: %q, %v", st.Marked(), err)
	}
	e.ok(st.Abort(e.ctx), "Abort")
	if st, err = e.Stage(e.ctx, spec); err != nil || string(st.Marked()) != "after c" {
		t.Fatalf("Stage once more: %v", err)
	}
	want := Files{"a": "1", "b": "2", "d/c": noise(3, 100<<10), "e": "last"}
	e.ok(c.WriteStage(st, Files{"e": "last"}), "write")
	s1, err := st.Commit(e.ctx)
	e.ok(err, "Commit")
	e.ok(st.Close(), "Close after Commit")
	e.wantSnapshot(s1, want)
	if s1.ID != "s1" || string(s1.Note) != "n1" {
		t.Errorf("Commit gave %+v", s1)
	}
	_, err = e.Stage(e.ctx, spec)
	e.is(err, api.Exists, "Stage of what is there")
	e.stageOnBase(want)
}

// stageOnBase gives up what begins as a copy of s1: want.
func (e *env) stageOnBase(want Files) {
	e.t.Helper()
	c := e.s.opt.Content
	st, err := e.Stage(e.ctx, storage.ReceiveSpec{Volume: "v", ID: "s2", Base: "s1"})
	e.ok(err, "Stage on a base")
	got, err := c.ReadStage(st)
	e.ok(err, "read the stage")
	e.same(got, want, "a stage on a base")
	e.ok(c.WriteStage(st, Files{"a": "changed"}), "write")
	e.ok(st.Mark(e.ctx, nil), "Mark")
	e.ok(st.Abort(e.ctx), "Abort")
	e.ok(st.Close(), "Close")
	e, content := e.again()
	if len(content.Partial) != 0 {
		e.t.Errorf("after Abort %+v can go on", content.Partial)
	}
	e.wantIDs("v", "s1")
	e.wantSnapshot(content.Snapshots[0], want)
	// Dropped by name.
	st, err = e.Stage(e.ctx, storage.ReceiveSpec{Volume: "v", ID: "s3", Base: "s1"})
	e.ok(err, "Stage")
	e.ok(st.Mark(e.ctx, []byte("m")), "Mark")
	e.ok(st.Close(), "Close")
	e.ok(e.DestroySnapshot(e.ctx, "v", "s3"), "DestroySnapshot of what is not complete")
	if _, content = e.again(); len(content.Partial) != 0 {
		e.t.Errorf("after DestroySnapshot %+v can go on", content.Partial)
	}
}

// body is content large enough for several checkpoints.
func body(seed uint64) Files {
	f := Files{"big": noise(seed, 700<<10), "text": "hello", "d/e/f": noise(seed+1, 5000), "empty": ""}
	for i := range 20 {
		f["many/"+string(rune('a'+i))] = noise(seed+uint64(i), 1000*i)
	}
	return f
}

func (s suite) streams(t *testing.T) {
	t.Run("PingPong", s.pingPong)
	t.Run("Wrong base", s.wrongBase)
	t.Run("Resume", s.resume)
	t.Run("Truncated", s.truncated)
	t.Run("Damaged", s.damagedStream)
	t.Run("Arguments", s.streamArguments)
}

// pingPong moves a volume there and back and there, each time only by what changed.
func (s suite) pingPong(t *testing.T) {
	pools := []*env{s.new(t), s.new(t)}
	h := pools[0].head("v", "")
	want := body(1)
	pools[0].write(h, want)
	base := ""
	for round := range 4 {
		from, to := pools[round%2], pools[(round+1)%2]
		id := "s" + string(rune('1'+round))
		sn := from.snap(h, id)
		data := from.stream("v", id, base, 0)
		if !bytes.Equal(data, from.stream("v", id, base, 0)) {
			t.Fatal("the stream is not the same each time")
		}
		if est, ok := storage.As[storage.Estimator](from.Backend); ok {
			n, err := est.Estimate(from.ctx, storage.SendSpec{Volume: "v", ID: id, Base: base, Format: from.native().Format()})
			from.ok(err, "Estimate")
			if got := int64(len(data)); n < got*8/10-4096 || n > got*12/10+4096 {
				t.Errorf("estimated %d bytes, the stream has %d", n, got)
			}
		}
		if base != "" && len(data) > 200<<10 {
			t.Errorf("round %d took %d bytes for a small change", round, len(data))
		}
		got := to.take("v", id, base, data)
		to.wantSnapshot(got, want)
		if got.Lineage != sn.Lineage || got.Lineage == "" || string(got.Note) != "note of "+id {
			t.Fatalf("received %+v, sent %+v", got, sn)
		}
		_, err := to.native().Receive(to.ctx, storage.ReceiveSpec{Volume: "v", ID: id, Base: base}, to.native().Format())
		to.is(err, api.Exists, "Receive of what is there")
		if round >= 1 {
			to.ok(to.DestroyHead(to.ctx, key("v")), "DestroyHead of the older copy")
		}
		h = to.head("v", id)
		to.wantHead(h, want)
		change := Files{"text": "round " + id, "new/" + id: noise(uint64(round), 3000)}
		to.write(h, change)
		want = maps.Clone(want)
		maps.Copy(want, change)
		base = id
	}
	for _, e := range pools {
		_, c := e.again()
		if len(c.Strange)+len(c.Partial) != 0 {
			t.Errorf("left behind: %+v", c)
		}
	}
}

func (s suite) wrongBase(t *testing.T) {
	a, b := s.new(t), s.new(t)
	h := a.head("v", "")
	a.write(h, body(1))
	a.snap(h, "s1")
	a.write(h, Files{"text": "2"})
	a.snap(h, "s2")
	inc := a.stream("v", "s2", "s1", 0)
	// The same ID and content, but not by a stream: another lineage.
	hb := b.head("v", "")
	b.write(hb, body(1))
	sb := b.snap(hb, "s1")
	r := b.receive("v", "s2", "s1")
	_, err := r.Write(inc)
	if err == nil {
		_, err = r.Commit(b.ctx)
	}
	b.is(err, api.Conflict, "a stream against another lineage")
	b.ok(r.Abort(b.ctx), "Abort")
	b.wantIDs("v", "s1")
	b.wantSnapshot(sb, body(1))
	_, err = b.native().Receive(b.ctx, storage.ReceiveSpec{Volume: "v", ID: "s2", Base: "none"}, b.native().Format())
	b.is(err, api.NotFound, "Receive on no base")
	// A full stream where changes were announced, and the other way round.
	full := a.stream("v", "s2", "", 0)
	r = b.receive("v", "s2", "s1")
	if _, err = r.Write(full); err == nil {
		_, err = r.Commit(b.ctx)
	}
	b.is(err, api.Conflict, "a full stream for a base")
	b.ok(r.Abort(b.ctx), "Abort")
	r = b.receive("v", "s2", "")
	if _, err = r.Write(inc); err == nil {
		_, err = r.Commit(b.ctx)
	}
	b.is(err, api.Conflict, "changes without a base")
	b.ok(r.Close(), "Close")
	b.wantIDs("v", "s1")
	got := b.take("v", "s2", "", full) // the same ID can still be had
	want := body(1)
	want["text"] = "2"
	b.wantSnapshot(got, want)
}

// resume cuts the session at many places: by Close, and as a kill would.
func (s suite) resume(t *testing.T) {
	a, b := s.new(t), s.new(t)
	h := a.head("v", "")
	want := body(1)
	a.write(h, want)
	a.snap(h, "s1")
	full := a.stream("v", "s1", "", 0)
	change := Files{"big": noise(9, 600<<10), "x/y": noise(4, 50<<10)}
	a.write(h, change)
	a.snap(h, "s2")
	inc := a.stream("v", "s2", "s1", 0)
	b = b.cutAndResume("s1", "", full, a)
	maps.Copy(want, change)
	b = b.cutAndResume("s2", "s1", inc, a)
	list, err := b.Snapshots(b.ctx, "v")
	b.ok(err, "Snapshots")
	b.wantSnapshot(list[0], body(1))
	b.wantSnapshot(list[1], want)
}

func (e *env) cutAndResume(id, base string, data []byte, source *env) *env {
	t := e.t
	t.Helper()
	r := e.receive("v", id, base)
	at, cuts := int64(0), 0
	for _, piece := range []int{1, 16, 17, 18, 30, 1000, 4096, 50_000, 131_072, 77_777} {
		// Parts arrive in pieces that have nothing to do with the format.
		end := min(at+int64(piece)+int64(len(data)/12), int64(len(data)))
		for p := at; p < end; p += int64(piece)*7 + 5 {
			if _, err := r.Write(data[p:min(p+int64(piece)*7+5, end)]); err != nil {
				t.Fatalf("Write at %d: %v", p, err)
			}
		}
		kept, err := r.Checkpoint(e.ctx)
		e.ok(err, "Checkpoint")
		if kept < at || kept > end || kept != r.Offset() {
			t.Fatalf("Checkpoint gave %d after writing %d to %d; Offset is %d", kept, at, end, r.Offset())
		}
		// More that is not kept.
		_, err = r.Write(data[end:min(end+3000, int64(len(data)))])
		e.ok(err, "Write")
		if cuts++; cuts%2 == 0 {
			e.ok(r.Close(), "Close")
		} else {
			var c storage.Content
			if e, c = e.again(); kept > 0 && (len(c.Partial) != 1 || c.Partial[0].ID != id) {
				t.Fatalf("Recover says %+v can go on", c.Partial)
			}
		}
		r = e.receive("v", id, base)
		if r.Offset() != kept {
			t.Fatalf("after a cut the offset is %d, kept was %d", r.Offset(), kept)
		}
		at = kept
	}
	if at == 0 {
		t.Fatal("nothing was ever kept")
	}
	rest := source.stream("v", id, base, at)
	if !bytes.Equal(rest, data[at:]) {
		t.Fatal("Send from an offset is not the end of the stream")
	}
	_, err := r.Write(rest)
	e.ok(err, "Write of the rest")
	// Once more behind the last byte: the end must still be known.
	at, err = r.Checkpoint(e.ctx)
	e.ok(err, "Checkpoint at the end")
	e.ok(r.Close(), "Close")
	e, _ = e.again()
	r = e.receive("v", id, base)
	_, err = r.Write(data[at:])
	e.ok(err, "Write of what is behind the last mark")
	_, err = r.Commit(e.ctx)
	e.ok(err, "Commit")
	e.ok(r.Close(), "Close")
	return e
}

func (s suite) truncated(t *testing.T) {
	a, b := s.new(t), s.new(t)
	h := a.head("v", "")
	a.write(h, body(1))
	a.snap(h, "s1")
	data := a.stream("v", "s1", "", 0)
	for _, n := range []int{0, 1, 20, len(data) / 2, len(data) - 5000, len(data) - 11, len(data) - 1} {
		r := b.receive("v", "s1", "")
		_, err := r.Write(data[:n])
		b.ok(err, "Write")
		_, err = r.Commit(b.ctx)
		b.is(err, api.Damaged, "Commit of a cut stream")
		b.wantIDs("v")
		if n%2 == 0 {
			b.ok(r.Abort(b.ctx), "Abort")
		}
		b.ok(r.Close(), "Close")
	}
	r := b.receive("v", "s1", "")
	b.ok(r.Abort(b.ctx), "Abort")
	r = b.receive("v", "s1", "")
	_, err := r.Write(append(slices.Clone(data), 'x'))
	if err == nil {
		_, err = r.Commit(b.ctx)
	}
	b.is(err, api.Damaged, "a stream with more behind its end")
	b.ok(r.Abort(b.ctx), "Abort")
	b.wantSnapshot(b.take("v", "s1", "", data), body(1))
}

// damagedStream flips bits everywhere: nothing may be published that is not
// what was sent, and nothing else may be harmed.
func (s suite) damagedStream(t *testing.T) {
	a, b := s.new(t), s.new(t)
	h := a.head("v", "")
	a.write(h, small)
	a.snap(h, "s1")
	data := a.stream("v", "s1", "", 0)
	other := b.head("other", "")
	b.write(other, small)
	so := b.snap(other, "s1")
	tries := min(len(data), 150)
	for i := range tries {
		r := b.receive("v", "s1", "")
		if r.Offset() != 0 {
			t.Fatal("a damaged stream goes on")
		}
		bad := slices.Clone(data)
		bad[i*len(data)/tries] ^= 1 << (i % 8)
		_, err := r.Write(bad)
		if err == nil {
			_, err = r.Commit(b.ctx)
		}
		if err == nil {
			t.Fatalf("a stream with bit %d of byte %d flipped was taken", i%8, i*len(data)/tries)
		}
		b.ok(r.Abort(b.ctx), "Abort")
	}
	for i, junk := range []string{"x", "garbage that is no stream", noise(7, 100<<10)} {
		r := b.receive("v", "s1", "")
		_, err := r.Write([]byte(junk))
		if err == nil {
			_, err = r.Commit(b.ctx)
		}
		if err == nil {
			t.Fatalf("garbage %d was taken", i)
		}
		b.ok(r.Abort(b.ctx), "Abort")
	}
	b.wantIDs("v")
	b.wantSnapshot(so, small)
	b.wantHead(other, small)
	if _, c := b.again(); len(c.Strange)+len(c.Partial) != 0 || len(c.Heads) != 1 || len(c.Snapshots) != 1 {
		t.Errorf("left behind: %+v", c)
	}
}

func (s suite) streamArguments(t *testing.T) {
	a := s.new(t)
	n := a.native()
	if !slices.Contains(n.Formats(), n.Format()) {
		t.Errorf("it does not receive its own format %q", n.Format())
	}
	h := a.head("v", "")
	a.snap(h, "s1")
	_, err := n.Send(a.ctx, storage.SendSpec{Volume: "v", ID: "none", Format: n.Format()})
	a.is(err, api.NotFound, "Send of no snapshot")
	_, err = n.Send(a.ctx, storage.SendSpec{Volume: "v", ID: "s1", Base: "none", Format: n.Format()})
	a.is(err, api.NotFound, "Send against no base")
	_, err = n.Send(a.ctx, storage.SendSpec{Volume: "v", ID: "s1", Format: "cuneiform"})
	a.is(err, api.Unsupported, "Send in a foreign format")
	_, err = n.Receive(a.ctx, storage.ReceiveSpec{Volume: "v", ID: "s9"}, "cuneiform")
	a.is(err, api.Unsupported, "Receive of a foreign format")
	r := a.receive("v", "s9", "")
	_, err = n.Receive(a.ctx, storage.ReceiveSpec{Volume: "v", ID: "s9"}, n.Format())
	a.is(err, api.InUse, "Receive twice")
	a.ok(r.Abort(a.ctx), "Abort")
	// A stream that nobody reads to its end holds nothing up.
	st, err := n.Send(a.ctx, storage.SendSpec{Volume: "v", ID: "s1", Format: n.Format()})
	a.ok(err, "Send")
	a.ok(st.Close(), "Close")
	a.ok(a.DestroySnapshot(a.ctx, "v", "s1"), "DestroySnapshot after a send that was given up")
}
