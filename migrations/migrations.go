// Package migrations holds the tables as numbered SQL files, embedded so that the program carries
// them. Package storage applies them with goose, after River's own, which they lean on.
package migrations

import "embed"

// FS holds the files NNNNN_name.sql in goose's format, each with its way up and down.
//
//go:embed *.sql
var FS embed.FS
