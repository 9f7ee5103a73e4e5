package blob

import "time"

// SetPatience shortens the wait for a stalled server.
func (s *S3) SetPatience(d time.Duration) { s.patience = d }
