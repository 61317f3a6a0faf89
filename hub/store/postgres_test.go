//go:build root

package store

import (
	"testing"

	"github.com/drover-data/drover/internal/postgres"
)

func TestPostgreSQL(t *testing.T) {
	server := postgres.Start(t)
	suite(t, func(t *testing.T) string { return server.Database(t) })
}
