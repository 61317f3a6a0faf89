package events

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
)

func newLog() *Log {
	return New("n1", slog.New(slog.DiscardHandler), func() time.Time { return time.Unix(100, 0) })
}

func TestAfter(t *testing.T) {
	l := newLog()
	list, more := l.After("")
	if len(list) != 0 {
		t.Fatalf("got %v", list)
	}
	l.Add(api.Event{Type: "a"})
	<-more
	l.Add(api.Event{Type: "b", Level: "warning"})
	list, _ = l.After("")
	if len(list) != 2 || list[0].Level != "info" || list[0].Node != "n1" || list[0].ID == list[1].ID {
		t.Fatalf("got %+v", list)
	}
	if rest, _ := l.After(list[0].ID); len(rest) != 1 || rest[0].Type != "b" {
		t.Errorf("got %+v", rest)
	}
	if rest, _ := l.After(list[1].ID); len(rest) != 0 {
		t.Errorf("got %+v", rest)
	}
}

func TestOnlyTheLastAreKept(t *testing.T) {
	l := newLog()
	for i := range 3 * keep {
		l.Add(api.Event{Type: fmt.Sprint(i)})
	}
	list, _ := l.After("")
	if len(list) < keep || len(list) > 2*keep || list[len(list)-1].Type != fmt.Sprint(3*keep-1) {
		t.Errorf("%d are kept, the last is %s", len(list), list[len(list)-1].Type)
	}
}

func TestMovesCarryTheTraceOfTheirRequest(t *testing.T) {
	l := newLog()
	l.Relate("m1", "t1")
	l.Relate("m2", "")
	l.Relate("", "t3")
	l.Add(api.Event{Data: map[string]string{"move": "m1"}})
	l.Add(api.Event{Data: map[string]string{"move": "m2"}})
	l.Add(api.Event{})
	l.Add(api.Event{Trace: "own", Data: map[string]string{"move": "m1"}})
	for i := range 1000 {
		l.Relate(fmt.Sprint(i), "t")
	}
	l.Add(api.Event{Data: map[string]string{"move": "m1"}})
	list, _ := l.After("")
	for i, want := range []string{"t1", "", "", "own", ""} {
		if list[i].Trace != want {
			t.Errorf("event %d has trace %q, want %q", i, list[i].Trace, want)
		}
	}
	if n := len(l.traces); n > 256 {
		t.Errorf("%d moves are remembered", n)
	}
}
