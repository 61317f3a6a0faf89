package store

import (
	"context"
	"strings"
	"time"

	"github.com/drover-data/drover/hub"
)

// never is when a letter that was given up is due.
const never = 1 << 62

// Retry says when something is sent again that could not be, and why.
func (s *Store) Retry(ctx context.Context, id int64, due time.Time, said string) error {
	return s.write(ctx, "send events", "", func(t tx) error {
		_, err := t.exec(ctx, "UPDATE outbox SET due = ?, said = ? WHERE id = ?", micros(due), clip(said), id)
		return err
	})
}

// GiveUp keeps something that could not be sent, for people to see, and sends it no more.
func (s *Store) GiveUp(ctx context.Context, id int64, said string) error {
	return s.write(ctx, "send events", "", func(t tx) error {
		_, err := t.exec(ctx, "UPDATE outbox SET due = ?, ended = ?, said = ? WHERE id = ?", int64(never), t.now, clip(said), id)
		return err
	})
}

// ForgetLetters removes what was given up before a time.
func (s *Store) ForgetLetters(ctx context.Context, before time.Time) error {
	return s.write(ctx, "forget deliveries", "", func(t tx) error {
		_, err := t.exec(ctx, "DELETE FROM outbox WHERE ended <> 0 AND ended < ?", micros(before))
		return err
	})
}

// Resend sends what was given up of a webhook once more, from now on; it says how many.
func (s *Store) Resend(ctx context.Context, repository string, webhook int64) (int64, error) {
	const op = "send again"
	var n int64
	err := s.write(ctx, op, repository, func(t tx) error {
		if _, err := t.webhook(ctx, op, repository, webhook); err != nil {
			return err
		}
		var err error
		n, err = t.exec(ctx, "UPDATE outbox SET due = ?, tries = 0, ended = 0 WHERE webhook = ? AND ended <> 0", t.now, webhook)
		return err
	})
	return n, err
}

// webhook looks one of a repository up.
func (t tx) webhook(ctx context.Context, op, repository string, id int64) (hub.Webhook, error) {
	list, err := all(ctx, t, func(scan func(...any) error) (hub.Webhook, error) { return scanHook(scan) },
		"SELECT "+hookColumns+" FROM webhooks w JOIN repositories r ON r.id = w.repository WHERE r.name = ? AND w.id = ?", repository, id)
	if err == nil && len(list) == 0 {
		return hub.Webhook{}, notThere(op, "webhook", repository)
	}
	if err != nil {
		return hub.Webhook{}, err
	}
	return list[0], nil
}

// Webhook looks one of a repository up.
func (s *Store) Webhook(ctx context.Context, repository string, id int64) (hub.Webhook, error) {
	w, err := s.reading().webhook(ctx, "find webhook", repository, id)
	return w, s.broken("find webhook", repository, err)
}

// SetWebhook says whether events are sent to a webhook. What happens while they are
// not is not sent later.
func (s *Store) SetWebhook(ctx context.Context, by hub.Identity, repository string, id int64, disabled bool) error {
	const op = "change webhook"
	return s.write(ctx, op, repository, func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, "UPDATE webhooks SET disabled = ? WHERE id = ? AND repository = ?", bit(disabled), id, r.id)
		if err := changed(n, err, op, "webhook", repository); err != nil {
			return err
		}
		return t.event(ctx, by, "webhook.change", repository, map[string]string{"disabled": map[bool]string{true: "true", false: "false"}[disabled]})
	})
}

// Letters lists what is on its way to a webhook or was given up: the newest first, at most limit.
func (s *Store) Letters(ctx context.Context, webhook int64, limit int) ([]hub.Letter, error) {
	list, err := all(ctx, s.reading(), func(scan func(...any) error) (l hub.Letter, err error) {
		var due, ended int64
		err = scan(&l.ID, &l.Event, &l.Kind, &l.Tries, &due, &ended, &l.Said)
		if l.GivenUp = later(ended); l.GivenUp == nil {
			l.Due = later(due)
		}
		return l, err
	}, "SELECT o.id, o.event, e.kind, o.tries, o.due, o.ended, o.said FROM outbox o JOIN events e ON e.id = o.event WHERE o.webhook = ? ORDER BY o.id DESC LIMIT ?", webhook, limit)
	return list, s.broken("list deliveries", "", err)
}

// clip bounds what somebody else said.
func clip(said string) string {
	const most = 500
	if len(said) > most {
		said = said[:most] + "…"
	}
	return strings.ToValidUTF8(strings.ReplaceAll(said, "\x00", ""), "")
}
