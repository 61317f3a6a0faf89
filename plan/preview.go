package plan

import "github.com/drover-data/drover/api"

// Preview lists the actions of a whole move, as they come when each works and
// two live rounds suffice: what a dry run shows.
func Preview(m MoveState, wish api.Move, epoch uint64) []Action {
	var out []Action
	const most = 40
	for range most {
		for _, a := range Move(m, wish, epoch) {
			if _, waits := a.(Wait); !waits {
				out = append(out, a)
			}
			switch a := a.(type) {
			case CheckTarget:
				m.Checked = true
			case TakeSnapshot:
				if a.Final {
					m.Final = "last"
				} else {
					m.Unsent = []string{"first", "second"}[min(len(m.Rounds), 1)]
				}
			case SealHead:
				m.Final = "last"
			case SendSnapshot:
				if a.ID == m.Final {
					m.FinalSent = true
				} else {
					// The second round is small enough.
					m.Rounds = append(m.Rounds, Round{ID: a.ID, Sent: int64(1-len(m.Rounds)) * 2 * small})
					m.Unsent = ""
				}
			case RunHook:
				m.Hooked = true
			case CloseHead:
				m.Closed = true
			case StopUsers:
				m.Stopping, m.Stopped, m.Users, m.Holders = true, true, false, ""
			case UnmountHead:
				m.Mounted = false
			case HandOver, CancelMove:
				return out
			}
		}
		m.Gone = m.Closed && !m.Users && !m.Mounted
	}
	return out
}
