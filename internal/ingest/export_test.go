package ingest

import "os"

// SetSync makes durable writes end in what f says.
func (u *Uploads) SetSync(f func(*os.File) error) { u.sync = f }
