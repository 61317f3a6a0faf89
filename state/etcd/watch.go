package etcd

import (
	"context"
	"errors"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// Watch implements state.KV.
func (kv *KV) Watch(ctx context.Context, prefix string, after int64) <-chan state.Batch {
	out := make(chan state.Batch)
	w := &watcher{kv: kv, prefix: prefix, after: after, out: out}
	go func() {
		defer close(out)
		for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
			before := w.after
			if w.run(ctx) || ctx.Err() != nil {
				return
			}
			if w.after != before {
				pause = 50 * time.Millisecond
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	}()
	return out
}

type watcher struct {
	kv     *KV
	prefix string
	after  int64 // revision up to which everything has been given
	out    chan<- state.Batch
}

// run watches until the store ends the watch; it reports whether that is for good.
func (w *watcher) run(ctx context.Context) (done bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Progress notes move after forward while nothing happens under the
	// prefix, so that a compaction costs an idle watcher no resync. A member
	// that lost touch with its leader ends the watch; another takes over.
	watch := w.kv.client.Watch(clientv3.WithRequireLeader(ctx), w.prefix, clientv3.WithPrefix(), clientv3.WithRev(w.after+1), clientv3.WithProgressNotify())
	for {
		select {
		case resp, ok := <-watch:
			if !ok {
				return false
			}
			if done, again := w.take(ctx, resp); done || again {
				return done
			}
		case <-w.kv.refused:
			w.give(ctx, state.Batch{Err: w.kv.translate(ctx, "watch state", w.prefix, errRefused)})
			return true
		}
	}
}

var errRefused = errors.New("certificate refused")

func (w *watcher) take(ctx context.Context, resp clientv3.WatchResponse) (done, again bool) {
	if resp.Header != nil && resp.Header.ClusterId != 0 && w.kv.check(resp.Header) != nil {
		return false, true // it may be the right one that answers next
	}
	if resp.CompactRevision != 0 {
		w.give(ctx, state.Batch{Revision: resp.CompactRevision, Resync: true})
		return true, false
	}
	if err := resp.Err(); err != nil {
		translated := w.kv.translate(ctx, "watch state", w.prefix, err)
		if denied(err) {
			translated = w.kv.translate(ctx, "watch state", w.prefix, rpctypes.ErrPermissionDenied)
		}
		if api.Is(translated, api.Denied) {
			w.give(ctx, state.Batch{Err: translated})
			return true, false
		}
		return false, true
	}
	for i := 0; i < len(resp.Events); {
		b := state.Batch{Revision: resp.Events[i].Kv.ModRevision}
		for ; i < len(resp.Events) && resp.Events[i].Kv.ModRevision == b.Revision; i++ {
			ev := resp.Events[i]
			it := state.Item{Key: string(ev.Kv.Key)}
			if ev.Type == clientv3.EventTypePut {
				it.Value, it.Mod = ev.Kv.Value, ev.Kv.ModRevision
			}
			b.Changed = append(b.Changed, it)
		}
		if !w.give(ctx, b) {
			return true, false
		}
		w.after = b.Revision
	}
	if resp.IsProgressNotify() {
		w.after = max(w.after, resp.Header.Revision)
	}
	return false, false
}

// denied looks through the form in which a refused watch arrives: the client
// wraps the text of the cancel reason, and of the gRPC error in it, in a plain
// error.
func denied(err error) bool {
	return errors.Is(err, rpctypes.ErrPermissionDenied) || strings.Contains(err.Error(), rpctypes.ErrorDesc(rpctypes.ErrGRPCPermissionDenied))
}

func (w *watcher) give(ctx context.Context, b state.Batch) bool {
	select {
	case w.out <- b:
		return true
	case <-ctx.Done():
		return false
	}
}

// Lease implements state.KV.
func (kv *KV) Lease(ctx context.Context, ttl time.Duration) (int64, <-chan struct{}, error) {
	var id clientv3.LeaseID
	var deadline time.Time
	err := kv.do(ctx, "take a lease", "", func(call context.Context) error {
		asked := time.Now()
		resp, err := kv.client.Grant(call, int64((ttl+time.Second-1)/time.Second))
		if err == nil {
			err = kv.check(resp.ResponseHeader)
		}
		if err != nil {
			return err
		}
		id, ttl = resp.ID, time.Duration(resp.TTL)*time.Second
		deadline = asked.Add(ttl)
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	renewals, err := kv.client.KeepAlive(ctx, id)
	if err != nil {
		return 0, nil, kv.translate(ctx, "take a lease", "", err)
	}
	lost := make(chan struct{})
	go func() {
		defer close(lost)
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		for {
			select {
			case r, ok := <-renewals:
				if !ok {
					return
				}
				// The store counted from somewhere between our asking and this
				// answer; a fifth of the time is given up to be on the safe side.
				timer.Reset(time.Duration(r.TTL) * time.Second * 4 / 5)
			case <-timer.C:
				return
			}
		}
	}()
	return int64(id), lost, nil
}
