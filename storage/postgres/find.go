package postgres

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"coverslip"
)

// Binaries is an installation of PostgreSQL's server programs.
type Binaries struct {
	Dir     string // the folder with initdb and postgres
	Version string // "15.14"
	Major   int
}

// oldest is the first major version with what the tables need (xid8, generated columns).
const oldest = 13

// Find returns the server programs that a new private server would run: those in the folder that
// COVERSLIP_POSTGRES_BIN names, else the newest of Debian's, else those on the PATH. Without any the
// error is Environment, and its hint is the line that installs them.
func Find() (Binaries, error) {
	b, err := find(0)
	return b, at("", "find PostgreSQL's server programs", err)
}

// find looks for one major version, or for any when it is 0: a cluster runs under its own only.
func find(major int) (Binaries, error) {
	var dirs []string
	if set := os.Getenv("COVERSLIP_POSTGRES_BIN"); set != "" {
		dirs = []string{set}
	} else {
		dirs, _ = filepath.Glob("/usr/lib/postgresql/*/bin")
		if path, err := exec.LookPath("postgres"); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	var best Binaries
	var seen []string
	for _, dir := range dirs {
		b, err := inspect(dir)
		if err != nil {
			seen = append(seen, err.Error())
			continue
		}
		seen = append(seen, b.Version+" in "+dir)
		if b.Major >= oldest && (major == 0 || b.Major == major) && b.Major > best.Major {
			best = b
		}
	}
	if best.Dir != "" {
		return best, nil
	}
	e := &coverslip.Error{Kind: coverslip.Environment, Hint: "apt-get install --no-install-recommends postgresql"}
	switch {
	case major != 0:
		e.Err = fmt.Errorf("the data folder was made by PostgreSQL %d, which is not here (%s)", major, strings.Join(append(seen, "nothing else"), "; "))
		e.Hint = fmt.Sprintf("apt-get install --no-install-recommends postgresql-%d, or set COVERSLIP_POSTGRES_BIN to the folder of its programs", major)
	case len(seen) > 0:
		e.Err = fmt.Errorf("no PostgreSQL from %d on: %s", oldest, strings.Join(seen, "; "))
	default:
		e.Err = errors.New("no PostgreSQL in /usr/lib/postgresql or on the PATH")
	}
	return Binaries{}, e
}

// inspect asks the programs in dir who they are.
func inspect(dir string) (Binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Binaries{}, err
	}
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return Binaries{}, err
	}
	// "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"
	said, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output() //nolint:gosec // the user's own choice of program
	if err != nil {
		return Binaries{}, fmt.Errorf("%s: %w", filepath.Join(dir, "postgres"), err)
	}
	fields := strings.Fields(string(said))
	if len(fields) < 3 {
		return Binaries{}, fmt.Errorf("%s: not PostgreSQL: %q", dir, said)
	}
	end := strings.IndexFunc(fields[2]+".", func(c rune) bool { return c < '0' || c > '9' }) // "15.14", "18beta1"
	major, err := strconv.Atoi(fields[2][:end])
	if err != nil {
		return Binaries{}, fmt.Errorf("%s: not a version of PostgreSQL: %q", dir, fields[2])
	}
	return Binaries{Dir: dir, Version: fields[2], Major: major}, nil
}

// clusterMajor is the major version that made the cluster, or 0 when there is none yet.
func clusterMajor(data string) (int, error) {
	text, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Lstat(data); err == nil {
			return 0, &coverslip.Error{Kind: coverslip.Conflict, Path: data, Err: errors.New("the folder is not a PostgreSQL cluster"),
				Hint: "move it away, or choose another data folder"}
		}
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, &coverslip.Error{Kind: coverslip.Invalid, Path: data, Err: fmt.Errorf("PG_VERSION says %q", text), Hint: "restore the folder from a copy"}
	}
	return major, nil
}

// serverUser is whom the server runs as. PostgreSQL refuses to run as root: then it is the owner of
// the cluster there is, else `postgres`, else `nobody`. Otherwise it is nil: this process's user.
func serverUser(data string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if info, err := os.Lstat(data); err == nil {
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 0 {
			return &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, &coverslip.Error{Kind: coverslip.Environment, Err: errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody"),
		Hint: "run as another user"}
}

// name is the server's user for people.
func (r runner) name() string {
	uid := strconv.Itoa(os.Geteuid())
	if r.who != nil {
		uid = strconv.FormatUint(uint64(r.who.Uid), 10)
	}
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return uid
}
