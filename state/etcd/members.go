package etcd

import (
	"context"
	"errors"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// maxLearners is how many learners etcd allows at once: as many as are ever
// needed, from one voter to five.
const maxLearners = 4

// Members implements state.Members on the embedded store.
type Members struct{ kv *KV }

var (
	_ state.Members = (*Members)(nil)
	_ state.Access  = (*Users)(nil)
)

// Members gives the store's members; only a control node may change them.
func (kv *KV) Members() *Members { return &Members{kv: kv} }

// List implements state.Members.
func (m *Members) List(ctx context.Context) ([]state.Member, error) {
	var list *clientv3.MemberListResponse
	err := m.kv.do(ctx, "list members of the state store", "", func(ctx context.Context) (err error) {
		list, err = m.kv.client.MemberList(ctx)
		if err == nil {
			err = m.kv.check(list.Header)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]state.Member, len(list.Members))
	applied := make([]uint64, len(list.Members))
	var wg sync.WaitGroup
	for i, member := range list.Members {
		out[i] = state.Member{ID: member.ID, Voter: !member.IsLearner}
		if len(member.PeerURLs) > 0 {
			out[i].PeerURL = member.PeerURLs[0]
		}
		if len(member.ClientURLs) == 0 {
			continue // added, but never started
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, m.kv.timeout/2)
			defer cancel()
			status, err := m.kv.client.Status(ctx, member.ClientURLs[0])
			if err == nil && status.Leader != 0 {
				out[i].Ready, applied[i] = true, status.RaftAppliedIndex
			}
		})
	}
	wg.Wait()
	var newest uint64
	for i, member := range out {
		if member.Voter {
			newest = max(newest, applied[i])
		}
	}
	for i := range out {
		// The same nine tenths that etcd asks for before it promotes.
		if !out[i].Voter && applied[i] < newest/10*9 {
			out[i].Ready = false
		}
	}
	return out, nil
}

// Add implements state.Members.
func (m *Members) Add(ctx context.Context, peerURL string) error {
	return m.kv.do(ctx, "add member to the state store", peerURL, func(ctx context.Context) error {
		_, err := m.kv.client.MemberAddAsLearner(ctx, []string{peerURL})
		if errors.Is(err, rpctypes.ErrPeerURLExist) {
			return nil
		}
		return err
	})
}

// Promote implements state.Members.
func (m *Members) Promote(ctx context.Context, id uint64) error {
	return m.kv.do(ctx, "give member of the state store a vote", "", func(ctx context.Context) error {
		_, err := m.kv.client.MemberPromote(ctx, id)
		switch {
		case errors.Is(err, rpctypes.ErrMemberNotLearner):
			return nil
		case errors.Is(err, rpctypes.ErrMemberLearnerNotReady):
			return &api.Error{Kind: api.Unavailable, Op: "give member of the state store a vote", Reason: "it is not in sync yet", Next: "wait; it is tried again"}
		}
		return err
	})
}

// Remove implements state.Members.
func (m *Members) Remove(ctx context.Context, id uint64) error {
	return m.kv.do(ctx, "remove member of the state store", "", func(ctx context.Context) error {
		_, err := m.kv.client.MemberRemove(ctx, id)
		switch {
		case errors.Is(err, rpctypes.ErrMemberNotFound):
			return nil
		case errors.Is(err, rpctypes.ErrUnhealthy):
			return &api.Error{Kind: api.Unavailable, Op: "remove member of the state store", Reason: "too few of the others would be left to have a majority", Next: "start the members that are down"}
		}
		return err
	})
}
