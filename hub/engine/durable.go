package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/distribution/distribution/v3/registry/storage/driver"

	"github.com/drover-data/drover/internal/durable"
)

// durably sees to it that what was written to a directory is found after a loss of
// power: the driver flushes files, and not the directories that name them.
type durably struct {
	driver.StorageDriver
	root string
}

// made does something that makes a file, and flushes every directory that it made or
// that the file is in.
func (d *durably) made(at string, do func() error) error {
	dir := filepath.Dir(filepath.Join(d.root, filepath.FromSlash(at)))
	there := dir
	for there != d.root && there != filepath.Dir(there) {
		if _, err := os.Stat(there); err == nil {
			break
		}
		there = filepath.Dir(there)
	}
	if err := do(); err != nil {
		return err
	}
	for ; ; dir = filepath.Dir(dir) {
		if err := durable.SyncDir(dir); err != nil || dir == there || dir == filepath.Dir(dir) {
			return err
		}
	}
}

// PutContent is of driver.StorageDriver.
func (d *durably) PutContent(ctx context.Context, at string, body []byte) error {
	return d.made(at, func() error { return d.StorageDriver.PutContent(ctx, at, body) })
}

// Move is of driver.StorageDriver.
func (d *durably) Move(ctx context.Context, from, to string) error {
	return d.made(to, func() error { return d.StorageDriver.Move(ctx, from, to) })
}

// Delete is of driver.StorageDriver: gone stays gone, before it is written down.
func (d *durably) Delete(ctx context.Context, at string) error {
	if err := d.StorageDriver.Delete(ctx, at); err != nil {
		return err
	}
	err := durable.SyncDir(filepath.Dir(filepath.Join(d.root, filepath.FromSlash(at))))
	if errors.Is(err, os.ErrNotExist) { // that went as well
		return nil
	}
	return err
}
