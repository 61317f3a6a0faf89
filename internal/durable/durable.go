// Package durable writes small files so that they are there after a power
// loss once the call has returned: the content, its name, and the directories
// above it. It knows nothing of what is written.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// WriteFile replaces a file atomically and durably. renameio flushes the
// content and renames, which leaves the new name in memory only.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	if err := renameio.WriteFile(path, data, mode, renameio.WithStaticPermissions(mode)); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// MkdirAll is os.MkdirAll, and the names of the directories it made are durable.
func MkdirAll(path string, mode fs.FileMode) error {
	path = filepath.Clean(path)
	var changed []string // directories that get a new name in them
	for at := path; ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); err == nil || filepath.Dir(at) == at {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		changed = append(changed, filepath.Dir(at))
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	for _, dir := range changed {
		if err := SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// SyncDir makes durable which names there are in a directory.
func SyncDir(path string) error {
	d, err := os.Open(filepath.Clean(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
