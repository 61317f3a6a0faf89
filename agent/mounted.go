package agent

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// mountpointMounted reports whether anything is mounted at path; nothing is
// where there is no path.
func mountpointMounted(path string) (bool, error) {
	there, err := mountinfo.Mounted(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return there, err
}

// Mark is in every error of the volume plugin that passes when the volume
// arrives, so that the agent recognises the containers that failed for it.
const Mark = "[drover]"

// volumeError reports whether the engine's error is of the volume plugin:
// its own word, or the engine's when the plugin did not answer.
func volumeError(text string) bool {
	if strings.Contains(text, Mark) {
		return true
	}
	missing := strings.Contains(text, "volume plugin") || strings.Contains(text, "VolumeDriver.Mount") || strings.Contains(text, "plugins/"+Driver+".sock")
	return missing && strings.Contains(text, Driver)
}
