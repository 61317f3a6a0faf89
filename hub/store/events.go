package store

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/drover-data/drover/hub"
)

// event writes a line of the activity log, and what webhooks are sent of it.
func (t tx) event(ctx context.Context, by hub.Identity, kind, repository string, details map[string]string) error {
	text, err := json.Marshal(details)
	if err != nil {
		return err
	}
	var id int64
	err = t.row(ctx, "INSERT INTO events (time, kind, repository, actor, token, details) VALUES (?, ?, ?, ?, ?, ?) RETURNING id", t.now, kind, repository, by.User, by.Token, string(text)).Scan(&id)
	if err != nil || repository == "" {
		return err
	}
	_, err = t.exec(ctx, `INSERT INTO outbox (webhook, event, due, tries)
		SELECT w.id, CAST(? AS BIGINT), CAST(? AS BIGINT), 0 FROM webhooks w JOIN repositories r ON r.id = w.repository
		WHERE r.name = ? AND w.disabled = 0 AND (w.kinds = '' OR ',' || w.kinds || ',' LIKE ?)`, id, t.now, repository, "%,"+kind+",%")
	return err
}

const eventColumns = "e.id, e.time, e.kind, e.repository, e.actor, e.token, e.details"

func scanEvent(scan func(...any) error) (e hub.Event, err error) {
	var at int64
	var details string
	if err = scan(&e.ID, &at, &e.Kind, &e.Repository, &e.User, &e.Token, &details); err != nil {
		return e, err
	}
	e.Time = timeOf(at)
	return e, json.Unmarshal([]byte(details), &e.Details)
}

// Events lists the activity of a repository, or all of it: the newest first, at most
// limit with a smaller id than before (0: from the newest on).
func (s *Store) Events(ctx context.Context, repository string, before int64, limit int) ([]hub.Event, error) {
	if before == 0 {
		before = 1 << 62
	}
	q, args := "SELECT "+eventColumns+" FROM events e WHERE e.id < ?", []any{before}
	if repository != "" {
		q, args = q+" AND e.repository = ?", append(args, repository)
	}
	list, err := all(ctx, s.reading(), scanEvent, q+" ORDER BY e.id DESC LIMIT ?", append(args, limit)...)
	return list, s.broken("list activity", repository, err)
}

// ForgetEvents removes the activity from before a time, but what is on its way to a webhook.
func (s *Store) ForgetEvents(ctx context.Context, before time.Time) error {
	return s.write(ctx, "forget activity", "", func(t tx) error {
		_, err := t.exec(ctx, "DELETE FROM events WHERE time < ? AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event = events.id)", micros(before))
		return err
	})
}

// AddWebhook has a repository's events sent from now on.
func (s *Store) AddWebhook(ctx context.Context, by hub.Identity, w hub.Webhook) (hub.Webhook, error) {
	err := s.write(ctx, "add webhook", w.Repository, func(t tx) error {
		r, err := t.lock(ctx, w.Repository)
		if err != nil {
			return err
		}
		w.Created = timeOf(t.now)
		err = t.row(ctx, "INSERT INTO webhooks (repository, url, secret, kinds, disabled, created) VALUES (?, ?, ?, ?, ?, ?) RETURNING id", r.id, w.URL, w.Secret, strings.Join(w.Kinds, ","), bit(w.Disabled), t.now).Scan(&w.ID)
		if err != nil {
			return err
		}
		return t.event(ctx, by, "webhook.create", w.Repository, map[string]string{"url": withoutSecret(w.URL)})
	})
	return w, err
}

const hookColumns = "w.id, r.name, w.url, w.secret, w.kinds, w.disabled, w.created"

func scanHook(scan func(...any) error, more ...any) (w hub.Webhook, err error) {
	var kinds string
	var disabled int
	var created int64
	err = scan(append([]any{&w.ID, &w.Repository, &w.URL, &w.Secret, &kinds, &disabled, &created}, more...)...)
	w.Kinds, w.Disabled, w.Created = []string{}, disabled != 0, timeOf(created)
	if kinds != "" {
		w.Kinds = strings.Split(kinds, ",")
	}
	return w, err
}

// Webhooks lists those of a repository.
func (s *Store) Webhooks(ctx context.Context, repository string) ([]hub.Webhook, error) {
	list, err := all(ctx, s.reading(), func(scan func(...any) error) (hub.Webhook, error) { return scanHook(scan) },
		"SELECT "+hookColumns+" FROM webhooks w JOIN repositories r ON r.id = w.repository WHERE r.name = ? ORDER BY w.id", repository)
	return list, s.broken("list webhooks", repository, err)
}

// DeleteWebhook removes one with what is on its way to it.
func (s *Store) DeleteWebhook(ctx context.Context, by hub.Identity, repository string, id int64) error {
	const op = "delete webhook"
	return s.write(ctx, op, repository, func(t tx) error {
		r, err := t.lock(ctx, repository)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, "DELETE FROM webhooks WHERE id = ? AND repository = ?", id, r.id)
		if err := changed(n, err, op, "webhook", repository); err != nil {
			return err
		}
		return t.event(ctx, by, "webhook.delete", repository, nil)
	})
}

// TakeDeliveries gives what is due to be sent, and puts it off for a while, so
// that no other process sends it too: who was given one says Delivered, Retry or GiveUp.
func (s *Store) TakeDeliveries(ctx context.Context, limit int, hold time.Duration) ([]hub.Delivery, error) {
	var out []hub.Delivery
	err := s.write(ctx, "send events", "", func(t tx) error {
		skip := t.locking()
		if skip != "" {
			skip = " FOR UPDATE OF o SKIP LOCKED"
		}
		var err error
		out, err = all(ctx, t, func(scan func(...any) error) (d hub.Delivery, err error) {
			var due, at int64
			var details string
			e := &d.Event
			d.Hook, err = scanHook(scan, &d.ID, &d.Tries, &due, &e.ID, &at, &e.Kind, &e.Repository, &e.User, &e.Token, &details)
			if err != nil {
				return d, err
			}
			d.Due, e.Time = timeOf(due), timeOf(at)
			return d, json.Unmarshal([]byte(details), &e.Details)
		}, "SELECT "+hookColumns+", o.id, o.tries, o.due, "+eventColumns+` FROM outbox o
			JOIN webhooks w ON w.id = o.webhook JOIN repositories r ON r.id = w.repository JOIN events e ON e.id = o.event
			WHERE o.due <= ? ORDER BY o.due, o.id LIMIT ?`+skip, t.now, limit)
		if err != nil {
			return err
		}
		for _, d := range out {
			if _, err := t.exec(ctx, "UPDATE outbox SET due = ?, tries = tries + 1 WHERE id = ?", t.now+hold.Microseconds(), d.ID); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// Delivered says that something was sent, or is given up.
func (s *Store) Delivered(ctx context.Context, id int64) error {
	return s.write(ctx, "send events", "", func(t tx) error {
		_, err := t.exec(ctx, "DELETE FROM outbox WHERE id = ?", id)
		return err
	})
}
