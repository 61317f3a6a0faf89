package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/remote"
)

// sealed is a volume's remote whose keys are looked at. It can be read as far
// as the keys are here, and nothing may be pushed through it.
type sealed struct {
	v    api.Volume
	name string
	api.Remote
	x *exchange.Remote
}

// sealedRemote opens a remote for looking at its names, records and keys.
func (a *Agent) sealedRemote(ctx context.Context, volume, name string) (sealed, error) {
	v, known := a.record(volume)
	if !known {
		return sealed{}, notHere(a.cfg.Node, volume)
	}
	name, r, err := remoteOf(v, name)
	if err != nil {
		return sealed{}, err
	}
	x, err := a.lookAt(ctx, v, r)
	return sealed{v, name, r, x}, err
}

// lookAt opens a remote without the key that seals: it can be listed and
// pruned, and read with what keys are here.
func (a *Agent) lookAt(ctx context.Context, v api.Volume, r api.Remote) (*exchange.Remote, error) {
	store, err := a.deps.Remotes.Open(ctx, r.URL)
	if err != nil {
		return nil, err
	}
	x := &exchange.Remote{Store: store, Cache: a.remoteCache(v.ID), Now: a.deps.Now}
	for _, id := range r.Keys() {
		// A key that cannot be had is named where it is missed.
		if k, err := a.obtain(ctx, v, id); err == nil {
			x.Old = append(x.Old, k)
		}
	}
	return x, nil
}

// RemoteKeys lists the keys of a remote: those the volume uses, and those that
// the remote keeps besides.
func (a *Agent) RemoteKeys(ctx context.Context, volume, name string) ([]api.RemoteKey, error) {
	s, err := a.sealedRemote(ctx, volume, name)
	if err != nil {
		return nil, err
	}
	defer s.x.Store.Close()
	return a.listKeys(ctx, s)
}

func (a *Agent) listKeys(ctx context.Context, s sealed) ([]api.RemoteKey, error) {
	stored, err := s.x.StoredKeys(ctx)
	if err != nil {
		return nil, err
	}
	all := append(slices.Clone(s.Keys()), stored...)
	slices.Sort(all)
	out := []api.RemoteKey{}
	for _, id := range slices.Compact(all) {
		k := api.RemoteKey{ID: id, Use: "other"}
		switch {
		case id == s.Key:
			k.Use = "current"
		case slices.Contains(s.Old, id):
			k.Use = "old"
		}
		_, err := a.keys().read(id)
		k.Here = err == nil
		if err != nil && !api.Is(err, api.NotFound) {
			k.Fault = err.Error()
		}
		if slices.Contains(stored, id) {
			wrapped, err := s.x.WrappedKey(ctx, id)
			if err != nil && !api.Is(err, api.Damaged) && !api.Is(err, api.NotFound) {
				return nil, err
			}
			if k.Wrapped = exchange.WrappedBy(wrapped); k.Wrapped == "" {
				k.Wrapped = "damaged"
			}
		}
		out = append(out, k)
	}
	rank := map[string]int{"current": 0, "old": 1, "other": 2}
	slices.SortStableFunc(out, func(x, y api.RemoteKey) int { return rank[x.Use] - rank[y.Use] })
	return out, nil
}

// MakeKey makes a key for a remote, keeps it wrapped there, and seals with it
// from now on. It can be repeated after a crash: what has no name seals nothing.
func (a *Agent) MakeKey(ctx context.Context, volume, name string, r api.SealKey, by string) (api.RemoteKey, error) {
	const op = "make key"
	s, err := a.sealedRemote(ctx, volume, name)
	if err != nil {
		return api.RemoteKey{}, err
	}
	defer s.x.Store.Close()
	there, err := s.x.SealedWith(ctx)
	switch {
	case err != nil && !r.Rotate:
		return api.RemoteKey{}, err
	case r.Rotate && s.Key == "":
		return api.RemoteKey{}, &api.Error{Kind: api.NotFound, Op: op, Object: s.name, Reason: "nothing is sealed there yet", Next: "drover remote key new " + s.v.Name + " " + s.name}
	case !r.Rotate && s.Key != "":
		return api.RemoteKey{}, &api.Error{Kind: api.Exists, Op: op, Object: s.name, Reason: "it is sealed with the key " + s.Key, Next: "drover remote key rotate " + s.v.Name + " " + s.name + " makes another"}
	case !r.Rotate && there != "":
		return api.RemoteKey{}, &api.Error{Kind: api.Exists, Op: op, Object: s.name, Reason: "what is there is sealed with the key " + there, Next: "drover remote key unlock " + s.v.Name + " " + s.name}
	}
	secret := make([]byte, exchange.KeySize)
	rand.Read(secret) // never fails, see its documentation
	key, err := a.wrapAt(ctx, s.x, secret, r)
	if err != nil {
		return api.RemoteKey{}, err
	}
	// The record names it last: before, nothing is sealed with it.
	after, err := a.deps.Ledger.Change(ctx, s.v.ID, ledger.Change{SetKey: &ledger.SetKey{Remote: s.name, Key: key.ID, Was: s.Key}})
	if err != nil {
		return api.RemoteKey{}, err
	}
	a.take(after, true)
	key.Use = "current"
	key.Warning, err = a.unsealed(ctx, s, there)
	a.event("volume.key-made", "info", s.v, "", fmt.Sprintf("what volume %s pushes to %s is sealed with the key %s, made by %s", s.v.Name, s.name, key.ID, by), map[string]string{"key": key.ID, "remote": s.name})
	return key, err
}

// unsealed warns of what a new key does not seal.
func (a *Agent) unsealed(ctx context.Context, s sealed, there string) (string, error) {
	if there != "" {
		return "what was pushed before stays sealed with the key " + there + " until retention drops it: keep that too", nil
	}
	branches, err := s.x.Store.Refs(ctx, remote.BranchPrefix)
	if err != nil || len(branches) == 0 {
		return "", err
	}
	return "what was pushed before stays in clear until retention drops it", nil
}

// wrapAt keeps a key here, and wrapped at the remote.
func (a *Agent) wrapAt(ctx context.Context, x *exchange.Remote, secret []byte, r api.SealKey) (api.RemoteKey, error) {
	key, err := exchange.NewKey(secret)
	if err != nil {
		return api.RemoteKey{}, err
	}
	wrapped, err := exchange.WrapKey(secret, r.Recipients, r.Passphrase)
	if err != nil {
		return api.RemoteKey{}, err
	}
	if err := x.Store.Check(ctx, true); err != nil {
		return api.RemoteKey{}, err
	}
	if _, err := a.keys().keep(secret); err != nil {
		return api.RemoteKey{}, err
	}
	return api.RemoteKey{ID: key.ID(), Here: true, Wrapped: exchange.WrappedBy(wrapped)}, x.StoreKey(ctx, key, wrapped)
}

// which is the key that is meant: one of the remote's, or the current.
func (s sealed) which(op, id string) (string, error) {
	if id == "" {
		id = s.Key
	}
	if id == "" {
		return "", &api.Error{Kind: api.NotFound, Op: op, Object: s.name, Reason: "nothing is sealed there", Next: "drover remote key new " + s.v.Name + " " + s.name}
	}
	if !slices.Contains(s.Keys(), id) {
		return "", &api.Error{Kind: api.NotFound, Op: op, Object: id, Reason: "it is no key of " + s.name, Next: "drover remote key ls " + s.v.Name + " " + s.name + " shows those it has"}
	}
	return id, nil
}

// secret gives a key's bytes, from wherever the volume has a part.
func (a *Agent) secret(ctx context.Context, v api.Volume, id string) ([]byte, error) {
	if _, err := a.obtain(ctx, v, id); err != nil {
		return nil, err
	}
	return a.keys().read(id)
}

// WrapKey keeps a key at the remote wrapped for others than before.
func (a *Agent) WrapKey(ctx context.Context, volume, name string, r api.SealKey, by string) (api.RemoteKey, error) {
	s, err := a.sealedRemote(ctx, volume, name)
	if err != nil {
		return api.RemoteKey{}, err
	}
	defer s.x.Store.Close()
	id, err := s.which("wrap key", r.ID)
	if err != nil {
		return api.RemoteKey{}, err
	}
	secret, err := a.secret(ctx, s.v, id)
	if err != nil {
		return api.RemoteKey{}, err
	}
	key, err := a.wrapAt(ctx, s.x, secret, r)
	if err != nil {
		return key, err
	}
	if key.Use = "old"; id == s.Key {
		key.Use = "current"
	}
	a.event("volume.key-wrapped", "info", s.v, "", fmt.Sprintf("%s wrapped the key %s of %s of volume %s anew", by, id, s.name, s.v.Name), map[string]string{"key": id, "remote": s.name})
	return key, nil
}

// ExportKey gives a key in clear, and tells that it did.
func (a *Agent) ExportKey(ctx context.Context, volume, name, id, by string) (api.KeyCopy, error) {
	s, err := a.sealedRemote(ctx, volume, name)
	if err != nil {
		return api.KeyCopy{}, err
	}
	defer s.x.Store.Close()
	if id, err = s.which("export key", id); err != nil {
		return api.KeyCopy{}, err
	}
	secret, err := a.secret(ctx, s.v, id)
	if err != nil {
		return api.KeyCopy{}, err
	}
	text, err := exchange.RecoveryCopy(secret)
	a.event("volume.key-exported", "info", s.v, "", fmt.Sprintf("%s exported the key %s of %s of volume %s", by, id, s.name, s.v.Name), map[string]string{"key": id, "remote": s.name})
	return api.KeyCopy{ID: id, Volume: s.v.Name, Remote: s.name, URL: s.URL, Copy: text}, err
}

// UnlockKey brings the keys here that open with what is given, and uses the one
// that what is there is sealed with.
func (a *Agent) UnlockKey(ctx context.Context, volume, name string, open api.OpenKey, by string) ([]api.RemoteKey, error) {
	s, err := a.sealedRemote(ctx, volume, name)
	if err != nil {
		return nil, err
	}
	defer s.x.Store.Close()
	first := s.Key
	if first == "" {
		if first, err = s.x.SealedWith(ctx); err != nil {
			return nil, err
		}
	}
	opened, err := a.openStored(ctx, s.x, first, open)
	if err != nil {
		return nil, err
	}
	change := ledger.SetKey{Remote: s.name, Know: opened}
	if s.Key == "" && slices.Contains(opened, first) {
		change.Key = first
	}
	after, err := a.deps.Ledger.Change(ctx, s.v.ID, ledger.Change{SetKey: &change})
	if err != nil {
		return nil, err
	}
	a.take(after, true)
	a.event("volume.key-unlocked", "info", s.v, "", fmt.Sprintf("%s brought %d keys of %s of volume %s to %s", by, len(opened), s.name, s.v.Name, a.cfg.Node), map[string]string{"remote": s.name})
	s.Remote = after.Remotes[s.name]
	return a.listKeys(ctx, s)
}

// openStored keeps what opens of the keys that a remote keeps, of first before
// all. It fails if nothing does.
func (a *Agent) openStored(ctx context.Context, x *exchange.Remote, first string, open api.OpenKey) ([]string, error) {
	const op = "unlock key"
	if open.Copy != "" {
		secret, err := exchange.ParseRecoveryCopy(open.Copy)
		if err != nil {
			return nil, err
		}
		id, err := a.keys().keep(secret)
		return []string{id}, err
	}
	stored, err := x.StoredKeys(ctx)
	if err != nil {
		return nil, err
	}
	if len(stored) == 0 {
		return nil, &api.Error{Kind: api.NotFound, Op: op, Object: x.Store.Info().URL, Reason: "it keeps no wrapped key", Next: "a recovery copy (--recovery-file) brings one here"}
	}
	slices.SortStableFunc(stored, func(p, q string) int {
		switch {
		case p == first && q != first:
			return -1
		case q == first && p != first:
			return 1
		}
		return 0
	})
	var opened []string
	var failed error
	for _, id := range stored[:min(len(stored), api.MaxOldKeys)] {
		err := a.openOne(ctx, x, id, open)
		if ctx.Err() != nil {
			return nil, remote.Ended(ctx, op, x.Store.Info().URL)
		}
		if err == nil {
			opened = append(opened, id)
		} else if failed == nil {
			failed = err
		}
	}
	if len(opened) == 0 {
		return nil, failed
	}
	return opened, nil
}

// openOne opens one key that a remote keeps, and keeps it here.
func (a *Agent) openOne(ctx context.Context, x *exchange.Remote, id string, open api.OpenKey) error {
	wrapped, err := x.WrappedKey(ctx, id)
	if err != nil {
		return err
	}
	secret, err := exchange.UnwrapKey(wrapped, open.Identity, open.Passphrase)
	if err != nil {
		return about(id, err)
	}
	if k, err := exchange.NewKey(secret); err != nil || k.ID() != id {
		return &api.Error{Kind: api.Damaged, Op: "open key", Object: id, Reason: "the remote keeps another key in its place", Next: "a recovery copy (--recovery-file) brings it here"}
	}
	_, err = a.keys().keep(secret)
	return err
}

// about says which object an error is about that does not know it.
func about(object string, err error) error {
	e, ok := err.(*api.Error)
	if !ok || e.Object != "" {
		return err
	}
	c := *e
	c.Object = object
	return &c
}

// settleKey says with which key a remote is to be sealed that is used for the
// first time, and which further ones open what is there. The keys are here then.
func (a *Agent) settleKey(ctx context.Context, x *exchange.Remote, v api.Volume, want string, open api.OpenKey) (key string, old []string, err error) {
	if key = want; key == "" {
		if key, err = x.SealedWith(ctx); err != nil {
			return "", nil, err
		}
	}
	if key == "" {
		return "", nil, nil
	}
	if open != (api.OpenKey{}) {
		if old, err = a.openStored(ctx, x, key, open); err != nil {
			return "", nil, err
		}
		old = slices.DeleteFunc(old, func(id string) bool { return id == key })
	}
	if _, err = a.obtain(ctx, v, key); err == nil || !api.Is(err, api.Denied) {
		return key, old, err
	}
	return "", nil, a.locked(ctx, x, key)
}

// locked says what it takes to use a remote that is sealed with a key that is not here.
func (a *Agent) locked(ctx context.Context, x *exchange.Remote, key string) error {
	e := &api.Error{Kind: api.Denied, Op: "use remote", Object: x.Store.Info().URL, Reason: "it is sealed with the key " + key + ", which " + a.cfg.Node + " does not have; "}
	wrapped, err := x.WrappedKey(ctx, key)
	switch by := exchange.WrappedBy(wrapped); {
	case api.Is(err, api.NotFound):
		e.Reason += "the remote does not keep it"
		e.Next = "give a recovery copy with --recovery-file"
	case by == exchange.ByPassphrase:
		e.Reason += "the remote keeps it wrapped with a passphrase"
		e.Next = "give --passphrase-file, or --recovery-file"
	case by == exchange.ByIdentity:
		e.Reason += "the remote keeps it wrapped for age public keys"
		e.Next = "give --identity-file, or --recovery-file"
	default:
		e.Reason += "what the remote keeps of it cannot be read"
		e.Next, e.Err = "give a recovery copy with --recovery-file", err
	}
	return e
}

// RemoveKey forgets an old key, here and at the remote. Force does so although
// commits are there that nobody can read without it.
func (a *Agent) RemoveKey(ctx context.Context, volume, name, id string, force bool, by string) error {
	const op = "remove key"
	s, err := a.sealedRemote(ctx, volume, name)
	if err != nil {
		return err
	}
	defer s.x.Store.Close()
	if id == s.Key {
		return &api.Error{Kind: api.InUse, Op: op, Object: id, Reason: "it seals what is pushed to " + s.name, Next: "drover remote key rotate " + s.v.Name + " " + s.name + " first"}
	}
	all, err := a.listKeys(ctx, s)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(k api.RemoteKey) bool { return k.ID == id }) {
		return &api.Error{Kind: api.NotFound, Op: op, Object: id, Reason: "it is no key of " + s.name, Next: "drover remote key ls " + s.v.Name + " " + s.name + " shows those it has"}
	}
	if !force {
		l, err := s.x.List(ctx, true)
		if err != nil {
			return err
		}
		n := 0
		for _, c := range l.Commits {
			if c.Sealed == id {
				n++
			}
		}
		if n > 0 {
			return &api.Error{Kind: api.InUse, Op: op, Object: id, Reason: fmt.Sprintf("%d commits at %s are sealed with it: nobody could read them any more", n, s.name), Next: "let retention drop them first (drover prune --remote " + s.name + "), or pass --force"}
		}
	}
	after, err := a.deps.Ledger.Change(ctx, s.v.ID, ledger.Change{SetKey: &ledger.SetKey{Remote: s.name, Drop: id}})
	if err != nil {
		return err
	}
	a.take(after, true)
	if err := s.x.RemoveKey(ctx, id); err != nil {
		return err
	}
	a.event("volume.key-removed", "info", s.v, "", fmt.Sprintf("%s removed the key %s of %s of volume %s", by, id, s.name, s.v.Name), map[string]string{"key": id, "remote": s.name})
	if slices.ContainsFunc(a.remotesHere(), func(v api.Volume) bool { return v.NeedsKey(id) }) {
		return nil // another volume's remote is sealed with it
	}
	return a.keys().remove(id)
}
