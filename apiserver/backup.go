package apiserver

import (
	"context"
	"net/http"

	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/backup"
	"github.com/drover-data/drover/ledger"
	"github.com/drover-data/drover/peer"
)

func (s *Server) backupRoutes() {
	add(s, route{"take-backup", http.MethodPost, "/v1/backup", "Take a backup of the cluster's state", auth.Manage, true, false}, s.takeBackup)
	add(s, route{"recover-without", http.MethodPost, "/v1/recovery/without/{name}", "Go on with a recovery without a node that does not report", auth.Manage, true, false}, s.recoverWithout)
	add(s, route{"peer-incarnation", http.MethodGet, "/v1/peer/incarnation", "Which life of the cluster this node has seen", auth.Look, false, true}, s.incarnation)
	add(s, route{"peer-holdings", http.MethodGet, "/v1/peer/holdings", "What this node's pools hold, as they remember it", auth.Report, false, true}, s.holdings)
	add(s, route{"peer-report", http.MethodPost, "/v1/peer/report", "Report after a recovery what the asking node's pools hold", auth.Report, true, false}, s.report)
}

// TakenBackup is a backup: what it is of, and the file's text.
type TakenBackup struct {
	Header backup.Header `json:"header"`
	File   []byte        `json:"file"`
}

func (s *Server) takeBackup(ctx context.Context, in *struct{ Body backup.Seal }) (TakenBackup, error) {
	file, h, err := s.cfg.Backup(ctx, in.Body)
	h.Secrets = nil // they are in the file
	return TakenBackup{h, file}, err
}

func (s *Server) recoverWithout(ctx context.Context, in *NodeName) (none, error) {
	return none{}, s.cfg.Recovery.GiveUp(ctx, in.Name)
}

func (s *Server) incarnation(ctx context.Context, _ *struct{}) (peer.Incarnation, error) {
	return s.cfg.Incarnation(ctx)
}

func (s *Server) holdings(ctx context.Context, _ *struct{}) (peer.Holdings, error) {
	copies, gone, err := s.cfg.Agent.Holdings(ctx)
	if copies == nil {
		copies = []ledger.Copy{}
	}
	return peer.Holdings{Copies: copies, Gone: gone}, err
}

func (s *Server) report(ctx context.Context, in *struct{ Body ledger.Report }) (none, error) {
	return none{}, s.cfg.Recovery.Report(ctx, identityOf(ctx), in.Body)
}
