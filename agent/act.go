package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
	"github.com/drover-data/drover/plan"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
)

// act does one action. Whatever it does can be done again.
func (h *head) act(ctx context.Context, o plan.Observed, action plan.Action) error {
	h.a.deps.Log.Debug("act", "volume", o.Volume.Name, "branch", h.key.branch, "action", action.String())
	switch a := action.(type) {
	case plan.MakeHead:
		return h.makeHead(ctx, o.Volume, a)
	case plan.ReportReady:
		return h.reportReady(ctx, o.Volume, a.Epoch)
	case plan.KeepNote:
		return h.keepNote(ctx, a.Pool, o.Volume, a.Epoch, "")
	case plan.SetSize:
		return h.setSize(ctx, o.Volume, a)
	case plan.DropHead:
		return h.dropHead(ctx, a)
	case plan.ReportSettled:
		h.mover.finished()
		v, err := h.a.deps.Ledger.Settled(ctx, h.key.volume, h.key.branch, h.a.cfg.Node, a.Epoch)
		return h.took(v, err)
	case plan.DropSnapshot:
		b, err := h.a.backend(a.Pool)
		if err != nil {
			return err
		}
		if h.a.needed(h.key.volume) {
			return errLookAgain
		}
		return h.dropSnapshot(ctx, a.Pool, b, a.ID)
	case plan.BeginPurge:
		return h.took(h.a.deps.Ledger.BeginPurge(ctx, h.key.volume))
	case plan.PurgeVolume:
		return h.purge(ctx, o, a.Epoch)
	case plan.SetAside:
		return h.setAside(ctx, a)
	case plan.StartUsers:
		return h.startUsers(ctx)
	case plan.RestartUsers:
		return h.mover.restart(ctx)
	case plan.Unfence:
		return h.mover.unfence(ctx, o)
	case plan.CloseForWork, plan.StopForWork, plan.KeepUncommitted, plan.ReleaseForWork, plan.ResetHead, plan.SwitchBranch, plan.EndWork:
		return h.actWork(ctx, o, action)
	case plan.ForgetDropped:
		return h.took(h.a.deps.Ledger.Change(ctx, h.key.volume, ledger.Change{ForgetDropped: true}))
	}
	return h.mover.act(ctx, o, action)
}

// took takes the record that a change gave back, before the watch does.
func (h *head) took(v api.Volume, err error) error {
	if err != nil {
		return err
	}
	if _, there := v.Heads[h.key.branch]; there {
		h.setRecord(v, true)
	}
	// The volume's other branches must not act on what was before.
	h.a.tell(v)
	return nil
}

func (h *head) makeHead(ctx context.Context, v api.Volume, a plan.MakeHead) error {
	b, err := h.a.backend(a.Pool)
	if err != nil {
		return err
	}
	reflog, err := h.inherited(ctx, b, v, a)
	if err != nil {
		return err
	}
	note, err := h.makeNote(v, a.Epoch, "", reflog)
	if err != nil {
		return err
	}
	_, err = b.CreateHead(ctx, storage.HeadSpec{Key: h.storageKey(), Size: a.Size, From: a.Seed, FromVolume: a.Of, Note: note})
	return err
}

// inherited is the reflog of a head that is to be made: of the head before it
// on this node, or what came with the snapshot that it begins as.
func (h *head) inherited(ctx context.Context, b storage.Backend, v api.Volume, a plan.MakeHead) ([]byte, error) {
	saved, found, err := get[savedLog](h.a.index, bucketRefLog, h.id())
	if err != nil {
		return nil, err
	}
	rec := v.Heads[h.key.branch]
	renamed := saved.Epoch == 0 && rec.Tip != nil && rec.Tip.Op == repo.OpRename
	packed := saved.Log
	if !found || (saved.Epoch != a.Epoch && !renamed) {
		packed = nil
		if a.Seed != "" && a.Of == "" {
			list, err := b.Snapshots(ctx, h.key.volume)
			if err != nil {
				return nil, err
			}
			for _, s := range list {
				if s.ID == a.Seed {
					packed = repo.ReadNote(s.Note).RefLog
				}
			}
		}
	}
	log, err := repo.UnpackRefLog(packed)
	if err != nil {
		h.a.deps.Log.Error("cannot read a reflog", "volume", v.Name, "branch", h.key.branch, "error", err)
	}
	if log, err = h.follow(ctx, log, rec); err != nil {
		return nil, err
	}
	return repo.PackRefLog(log)
}

func (h *head) reportReady(ctx context.Context, v api.Volume, epoch uint64) error {
	if epoch > 1 {
		// A container that failed for want of the head, and was given up when
		// nothing said that it would come, has it now.
		if err := put(h.a.index, bucketWaiting, h.id(), h.a.deps.Now()); err != nil {
			return err
		}
	}
	after, err := h.a.deps.Ledger.Ready(ctx, h.key.volume, h.key.branch, h.a.cfg.Node, epoch)
	if err := h.took(after, err); err != nil {
		return err
	}
	if epoch > 1 {
		h.a.event("volume.arrived", "info", v, h.key.branch, fmt.Sprintf("volume %s is on %s now, epoch %d", v.Name, h.a.cfg.Node, epoch), nil)
	} else {
		h.a.event("volume.created", "info", v, h.key.branch, fmt.Sprintf("volume %s is ready on %s", v.Name, h.a.cfg.Node), nil)
	}
	return nil
}

func (h *head) keepNote(ctx context.Context, pool string, v api.Volume, epoch uint64, released string) error {
	b, err := h.a.backend(pool)
	if err != nil {
		return err
	}
	hd, err := b.Head(ctx, h.storageKey())
	if err != nil {
		return err
	}
	reflog := readNote(hd.Note).RefLog
	if rec := v.Heads[h.key.branch]; rec.Node == h.a.cfg.Node && rec.Epoch == epoch {
		log, known, err := h.reflog(ctx)
		if err != nil {
			return err
		}
		if known {
			if reflog, err = repo.PackRefLog(log); err != nil {
				return err
			}
		}
	}
	note, err := h.makeNote(v, epoch, released, reflog)
	if err != nil {
		return err
	}
	return b.SetNote(ctx, h.storageKey(), note)
}

func (h *head) setSize(ctx context.Context, v api.Volume, a plan.SetSize) error {
	b, err := h.a.backend(a.Pool)
	if err != nil {
		return err
	}
	sizer, ok := storage.As[storage.Sizer](b)
	if !ok {
		return nil
	}
	if err := sizer.Resize(ctx, h.storageKey(), a.Size); err != nil {
		h.a.event("volume.resize-failed", "error", v, h.key.branch, err.Error(), nil)
		return err
	}
	h.a.event("volume.resized", "info", v, h.key.branch, fmt.Sprintf("volume %s is limited to %d bytes", v.Name, a.Size), nil)
	return nil
}

func (h *head) dropHead(ctx context.Context, a plan.DropHead) error {
	b, err := h.a.backend(a.Pool)
	if err != nil {
		return err
	}
	h.mounting.Lock()
	defer h.mounting.Unlock()
	hd, err := b.Head(ctx, h.storageKey())
	switch {
	case api.Is(err, api.NotFound): // gone already, or sealed
	case err != nil:
		return err
	case readNote(hd.Note).Epoch != a.Epoch:
		return &api.Error{Kind: api.Conflict, Op: "remove head", Object: h.id(), Reason: fmt.Sprintf("it is of epoch %d, not %d", readNote(hd.Note).Epoch, a.Epoch)}
	default:
		// The mount point of a head that moved within the node shows the new one.
		if err := h.unmount(ctx, b); err != nil {
			return err
		}
		if err := b.DestroyHead(ctx, h.storageKey()); err != nil {
			return err
		}
	}
	j, err := h.mover.journal()
	if err != nil || j.Here {
		return err
	}
	return h.mover.forget()
}

// setAside makes the snapshot that keeps a copy which lost.
func (h *head) setAside(ctx context.Context, a plan.SetAside) error {
	b, err := h.a.backend(a.Pool)
	if err != nil {
		return err
	}
	h.mounting.Lock()
	defer h.mounting.Unlock()
	if err := h.unmount(ctx, b); err != nil {
		return err
	}
	defer h.a.kickAll()
	_, err = b.Snapshot(ctx, h.storageKey(), a.Snapshot, nil)
	return err
}

// dropSnapshot removes a snapshot, or what had begun to arrive of one.
func (h *head) dropSnapshot(ctx context.Context, pool string, b storage.Backend, id string) error {
	arriving, err := h.a.index.arriving(h.id())
	if err != nil {
		return err
	}
	mine := arriving[id] == pool
	if mine {
		if err := h.a.Target.End(ctx, h.key.volume, id); err != nil {
			return err
		}
	}
	if err := b.DestroySnapshot(ctx, h.key.volume, id); err != nil {
		return err
	}
	h.a.notes.forget(h.key.volume, id)
	if !mine {
		return nil
	}
	return remove(h.a.index, bucketArriving, h.id()+"/"+id)
}

// purge removes heads first, then the snapshots, then the record.
func (h *head) purge(ctx context.Context, o plan.Observed, epoch uint64) error {
	h.mounting.Lock()
	defer h.mounting.Unlock()
	for _, c := range o.Copies {
		b, err := h.a.backend(c.Pool)
		if err != nil {
			return err
		}
		if err := h.unmount(ctx, b); err != nil {
			return err
		}
		if err := b.DestroyHead(ctx, h.storageKey()); err != nil {
			return err
		}
	}
	if len(o.Volume.Heads) == 1 {
		for _, s := range o.Snapshots {
			b, err := h.a.backend(s.Pool)
			if err != nil {
				return err
			}
			if err := b.DestroySnapshot(ctx, h.key.volume, s.ID); err != nil {
				return err
			}
		}
	}
	if err := h.a.deps.Ledger.Forget(ctx, h.key.volume, h.key.branch, h.a.cfg.Node, epoch); err != nil {
		return err
	}
	for _, bucket := range [][]byte{bucketBases, bucketCopies} {
		marks, err := h.a.index.under(bucket, h.id()+"/")
		if err != nil {
			return err
		}
		for k := range marks {
			if err := remove(h.a.index, bucket, h.id()+"/"+k); err != nil {
				return err
			}
		}
	}
	h.a.event("volume.purged", "info", o.Volume, h.key.branch, "the data of volume "+o.Volume.Name+" was removed", nil)
	h.a.drop(h.key.volume)
	return nil
}

// mounted reports whether Drover's own mount of the head is there.
func (h *head) mounted() (bool, error) { return h.a.deps.Mounted(h.mountpoint()) }

// mount makes the head usable at its mount point. It is called with mounting held.
func (h *head) mount(ctx context.Context, b storage.Backend) (string, error) {
	target := h.mountpoint()
	if err := os.MkdirAll(target, 0o700); err != nil {
		return "", err
	}
	return target, b.Mount(ctx, h.storageKey(), target)
}

// unmount is called with mounting held.
func (h *head) unmount(ctx context.Context, b storage.Backend) error {
	target := h.mountpoint()
	if err := b.Unmount(ctx, h.storageKey(), target); err != nil {
		return err
	}
	// An empty mount point is no use to anybody, and a way to write beside
	// the volume; that it is not empty would be news.
	if err := os.Remove(target); err != nil && !os.IsNotExist(err) {
		return err
	}
	// The volume's own directory goes with its last branch.
	if err := os.Remove(filepath.Dir(target)); err != nil && !os.IsNotExist(err) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// prepared is what a target was told of the containers that come with a head.
type prepared struct {
	peer.Preparation
	// Reuse names containers that stand here already: they were moved away
	// with the head and come back with it.
	Reuse []string `json:"reuse,omitempty"`
}

// arriving reports whether containers are to be started here for the head. It
// forgets those that were announced for a move that did not take place.
func (h *head) arriving(rec api.Head, fresh bool) (bool, error) {
	p, found, err := get[prepared](h.a.index, bucketPrepared, h.id())
	if err != nil {
		return false, err
	}
	here := rec.Node == h.a.cfg.Node
	announced := rec.Move != nil && rec.Move.ID == p.Move
	if found && fresh && !announced && (p.Epoch+1 != rec.Epoch || !here) {
		if err := remove(h.a.index, bucketPrepared, h.id()); err != nil {
			return false, err
		}
		found = false
	}
	if !here || !rec.Ready || rec.Move != nil {
		return false, nil
	}
	if found {
		return true, nil
	}
	_, waits, err := get[time.Time](h.a.index, bucketWaiting, h.id())
	return waits, err
}

// patience is how long a container may wait for a head of which nothing says
// that it comes here.
const patience = time.Minute

// stillWaiting forgets containers that wait in vain, and says when to look again.
func (h *head) stillWaiting(rec api.Head, fresh bool) (time.Duration, error) {
	since, waits, err := get[time.Time](h.a.index, bucketWaiting, h.id())
	if err != nil || !waits || !fresh || rec.Node == h.a.cfg.Node || (rec.Move != nil && rec.Move.To == h.a.cfg.Node) {
		return 0, err
	}
	if left := patience - h.a.deps.Now().Sub(since); left > 0 {
		return left, nil
	}
	return 0, remove(h.a.index, bucketWaiting, h.id())
}

// wait notes that a container here could not start for want of the head.
func (a *Agent) wait(key headKey) error {
	h := a.head(key.volume, key.branch)
	if h == nil {
		return nil // if it comes, it looks for such containers first
	}
	if err := put(a.index, bucketWaiting, h.id(), a.deps.Now()); err != nil {
		return err
	}
	if h.ended() {
		return remove(a.index, bucketWaiting, h.id())
	}
	h.kick()
	return nil
}

// startUsers makes and starts the containers that came with the head, and
// starts those that wait for it. A container that cannot be started holds up
// no other; it is tried again and said.
func (h *head) startUsers(ctx context.Context) error {
	v := h.volume()
	p, found, err := get[prepared](h.a.index, bucketPrepared, h.id())
	if err != nil {
		return err
	}
	var failed error
	var left []container.Spec
	for _, spec := range p.Containers {
		if err := h.startMoved(ctx, p, spec); err != nil {
			if failed == nil {
				failed = err
			}
			left = append(left, spec)
			h.complain(v, "container "+spec.Name+" came with the volume and does not run: "+err.Error())
			continue
		}
		h.a.event("container.moved", "info", v, h.key.branch, "container "+spec.Name+" runs on "+h.a.cfg.Node+" now", nil)
	}
	switch {
	case found && len(left) == 0:
		err = remove(h.a.index, bucketPrepared, h.id())
	case found && len(left) < len(p.Containers):
		// Those that run are their user's business from here on.
		p.Containers = left
		err = put(h.a.index, bucketPrepared, h.id(), p)
	}
	if err != nil {
		return err
	}
	// A container that fails for the volume once more puts the mark back.
	if err := remove(h.a.index, bucketWaiting, h.id()); err != nil {
		return err
	}
	if err := h.startWaiting(ctx, v); err != nil {
		return err
	}
	return failed
}

// startMoved makes and starts one container; one that comes back to where its
// original stands goes on as that.
func (h *head) startMoved(ctx context.Context, p prepared, spec container.Spec) error {
	engine, id := h.a.deps.Engine, ""
	if slices.Contains(p.Reuse, spec.Name) {
		c, err := engine.Inspect(ctx, spec.Name)
		if err != nil && !api.Is(err, api.NotFound) {
			return err
		}
		id = c.ID
	}
	if id == "" {
		var err error
		if id, err = engine.Import(ctx, spec); err != nil {
			return err
		}
	}
	// It may have been described after the move had switched its restarting off.
	if policy := p.Restart[spec.Name]; policy != "" {
		if err := engine.SetRestart(ctx, id, policy); err != nil {
			return err
		}
	}
	return engine.Start(ctx, id)
}

// complain tells once, not at each attempt.
func (h *head) complain(v api.Volume, text string) {
	if h.complained == nil {
		h.complained = map[string]bool{}
	}
	if !h.complained[text] {
		h.complained[text] = true
		h.a.event("container.failed", "error", v, h.key.branch, text, nil)
	}
}

// startWaiting starts the containers whose last start failed for the volume.
func (h *head) startWaiting(ctx context.Context, v api.Volume) error {
	cs, err := h.containers(ctx)
	if err != nil {
		return err
	}
	var failed error
	for _, c := range cs {
		if c.State.Uses() {
			continue
		}
		c, err := h.a.deps.Engine.Inspect(ctx, c.ID)
		if err != nil || !failedForVolume(c) {
			continue
		}
		err = h.a.deps.Engine.Start(ctx, c.ID)
		if err == nil {
			h.a.event("container.started", "info", v, h.key.branch, "container "+c.Name+" had waited for the volume and runs now", nil)
			continue
		}
		h.complain(v, "container "+c.Name+" waited for the volume and does not start: "+err.Error())
		if volumeError(err.Error()) || api.Is(err, api.Unavailable) {
			failed = err
			if err := h.a.wait(h.key); err != nil {
				return err
			}
		}
	}
	return failed
}

// failedForVolume reports whether the engine could not start a container only
// because the volume, or the plugin, was not there.
func failedForVolume(c container.Container) bool {
	if c.State != container.Created && c.State != container.Exited {
		return false
	}
	return volumeError(c.Error)
}
