package manage

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/webhook"
)

func (s *Server) webhookRoutes() {
	const one = "/repositories/{repository}/webhooks/{id}"
	add(s, route{"list-webhooks", http.MethodGet, "/repositories/{repository}/webhooks", "List where a repository's events are sent, with what did not arrive (its admins)"}, s.listWebhooks)
	add(s, route{"create-webhook", http.MethodPost, "/repositories/{repository}/webhooks", "Have a repository's events sent; the secret that signs them is in this answer and nowhere else (its admins)"}, s.createWebhook)
	add(s, route{"change-webhook", http.MethodPatch, one, "Stop sending to a webhook, or go on (its admins)"}, s.changeWebhook)
	add(s, route{"delete-webhook", http.MethodDelete, one, "Remove a webhook with what is on its way to it (its admins)"}, s.deleteWebhook)
	add(s, route{"test-webhook", http.MethodPost, one + "/test", "Send a test now, and say how it went (its admins)"}, s.testWebhook)
	add(s, route{"resend-webhook", http.MethodPost, one + "/resend", "Send what was given up once more (its admins)"}, s.resendWebhook)
}

// Bounds of what is kept and shown of webhooks.
const (
	maxWebhooks = 20 // of a repository
	maxLetters  = 50
)

func (s *Server) listWebhooks(ctx context.Context, in *RepositoryIn) ([]hub.WebhookDetail, error) {
	if _, _, err := s.may(ctx, "list webhooks", in.Repository, hub.Admin); err != nil {
		return nil, err
	}
	if _, err := s.o.Store.Repository(ctx, in.Repository); err != nil {
		return nil, err
	}
	list, err := s.o.Store.Webhooks(ctx, in.Repository)
	if err != nil {
		return nil, err
	}
	out := []hub.WebhookDetail{}
	for _, w := range list {
		letters, err := s.o.Store.Letters(ctx, w.ID, maxLetters)
		if err != nil {
			return nil, err
		}
		out = append(out, hub.WebhookDetail{Webhook: w, Letters: letters})
	}
	return out, nil
}

type createWebhook struct {
	RepositoryIn
	Body hub.NewWebhook
}

func (s *Server) createWebhook(ctx context.Context, in *createWebhook) (hub.WebhookSecret, error) {
	const op = "create webhook"
	who, _, err := s.may(ctx, op, in.Repository, hub.Admin)
	if err != nil {
		return hub.WebhookSecret{}, err
	}
	if err := s.o.CheckURL(in.Body.URL); err != nil {
		return hub.WebhookSecret{}, err
	}
	kinds := slices.Compact(slices.Sorted(slices.Values(in.Body.Kinds)))
	for _, k := range kinds {
		if !slices.Contains(hub.EventKinds, k) {
			return hub.WebhookSecret{}, &api.Error{Kind: api.Invalid, Op: op, Object: k, Reason: "no event is of that kind", Next: "there are " + strings.Join(hub.EventKinds, ", ")}
		}
	}
	secret := in.Body.Secret
	if secret == "" {
		secret = webhook.NewSecret()
	} else if _, err := webhook.ParseSecret(secret); err != nil {
		return hub.WebhookSecret{}, err
	}
	list, err := s.o.Store.Webhooks(ctx, in.Repository)
	if err != nil {
		return hub.WebhookSecret{}, err
	}
	if len(list) >= maxWebhooks {
		return hub.WebhookSecret{}, &api.Error{Kind: api.Exhausted, Op: op, Object: in.Repository, Reason: "it has as many webhooks as a repository may", Next: "delete one"}
	}
	w, err := s.o.Store.AddWebhook(ctx, who, hub.Webhook{Repository: in.Repository, URL: in.Body.URL, Secret: secret, Kinds: kinds})
	return hub.WebhookSecret{Webhook: w, Secret: secret}, err
}

type WebhookIn struct {
	RepositoryIn
	ID int64 `path:"id"`
}

type changeWebhook struct {
	WebhookIn
	Body hub.ChangeWebhook
}

func (s *Server) changeWebhook(ctx context.Context, in *changeWebhook) (hub.Webhook, error) {
	who, _, err := s.may(ctx, "change webhook", in.Repository, hub.Admin)
	if err != nil {
		return hub.Webhook{}, err
	}
	if err := s.o.Store.SetWebhook(ctx, who, in.Repository, in.ID, in.Body.Disabled); err != nil {
		return hub.Webhook{}, err
	}
	return s.o.Store.Webhook(ctx, in.Repository, in.ID)
}

func (s *Server) deleteWebhook(ctx context.Context, in *WebhookIn) (done, error) {
	who, _, err := s.may(ctx, "delete webhook", in.Repository, hub.Admin)
	if err != nil {
		return done{}, err
	}
	return done{}, s.o.Store.DeleteWebhook(ctx, who, in.Repository, in.ID)
}

func (s *Server) testWebhook(ctx context.Context, in *WebhookIn) (hub.Attempt, error) {
	if _, _, err := s.may(ctx, "test webhook", in.Repository, hub.Admin); err != nil {
		return hub.Attempt{}, err
	}
	w, err := s.o.Store.Webhook(ctx, in.Repository, in.ID)
	if err != nil {
		return hub.Attempt{}, err
	}
	return s.o.Ping(ctx, w), nil
}

// resent says how many are sent again.
type resent struct {
	Resent int64 `json:"resent"`
}

func (s *Server) resendWebhook(ctx context.Context, in *WebhookIn) (resent, error) {
	if _, _, err := s.may(ctx, "send again", in.Repository, hub.Admin); err != nil {
		return resent{}, err
	}
	n, err := s.o.Store.Resend(ctx, in.Repository, in.ID)
	return resent{n}, err
}
