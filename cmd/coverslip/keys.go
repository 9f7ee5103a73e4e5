package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"coverslip"
	"coverslip/api"
	"coverslip/storage"
)

type keysCmd struct {
	List   keysListCmd   `cmd:"" default:"withargs" help:"List the keys, the newest first."`
	Add    keysAddCmd    `cmd:"" help:"Make a key, and show it once."`
	Revoke keysRevokeCmd `cmd:"" help:"End a key."`
	Log    keysLogCmd    `cmd:"" help:"Show who changed what."`
}

type keysListCmd struct{ dataFlags }

// Help is shown by coverslip keys --help.
func (keysListCmd) Help() string {
	return `Examples:
  coverslip keys add scanner-room --scope write
  coverslip keys revoke 3k7qzj2a

A server that listens beyond this machine asks for a key with every request. Keys are kept as hashes.`
}

// Run lists the keys.
func (c *keysListCmd) Run(e *env) error {
	return c.withDB(e, func(db *storage.DB) error {
		keys, err := db.APIKeys(e)
		if err != nil {
			return err
		}
		rows := []string{"key\tname\tscope\tcreated\tlast used\tstate"}
		for _, k := range keys {
			if e.json {
				if err := e.emit(k); err != nil {
					return err
				}
				continue
			}
			used, state := "never", "works"
			if k.Used != nil {
				used = k.Used.Format(time.DateTime)
			}
			switch {
			case k.Revoked != nil:
				state = "revoked"
			case k.Expires != nil && k.Expires.Before(time.Now()):
				state = "expired"
			case k.Expires != nil:
				state = "until " + k.Expires.Format(time.DateTime)
			}
			rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s", k.ID, k.Name, k.Scope, k.Created.Format(time.DateTime), used, state))
		}
		switch {
		case e.json:
		case len(keys) == 0:
			e.printf("no keys; coverslip keys add NAME --scope write makes one\n")
		default:
			e.table(rows...)
		}
		return nil
	})
}

func (f *dataFlags) withDB(e *env, do func(*storage.DB) error) error {
	p, err := f.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	return do(p.DB)
}

type keysAddCmd struct {
	Name    string        `arg:"" help:"Whose it is, or what for; the audit log says it."`
	Scope   string        `enum:"read,write,admin" default:"read" help:"What it may do: read, write (and read), or admin (${default})."`
	Expires time.Duration `placeholder:"720h" help:"How long it works; without it, until it is revoked."`
	dataFlags
}

// Help is shown by coverslip keys add --help.
func (keysAddCmd) Help() string {
	return "Example:\n  coverslip keys add scanner-room --scope write --expires 2160h"
}

// Run makes a key.
func (c *keysAddCmd) Run(e *env) error {
	return c.withDB(e, func(db *storage.DB) error {
		var expires *time.Time
		if c.Expires > 0 {
			at := time.Now().Add(c.Expires)
			expires = &at
		}
		k, secret, err := db.AddAPIKey(e, c.Name, c.Scope, expires)
		if err != nil {
			return err
		}
		if e.json {
			return e.emit(struct {
				storage.APIKey
				Key string `json:"key"`
			}{k, secret})
		}
		e.printf("%s\n", secret)
		e.say("Keep it now: it is not shown again. Send it as  Authorization: Bearer KEY,  or set COVERSLIP_KEY for coverslip upload.\n")
		return nil
	})
}

type keysRevokeCmd struct {
	ID string `arg:"" help:"The key's id, as coverslip keys lists it."`
	dataFlags
}

// Help is shown by coverslip keys revoke --help.
func (keysRevokeCmd) Help() string { return "Example:\n  coverslip keys revoke 3k7qzj2a" }

// Run ends a key.
func (c *keysRevokeCmd) Run(e *env) error {
	return c.withDB(e, func(db *storage.DB) error {
		if err := db.RevokeAPIKey(e, c.ID); err != nil {
			return err
		}
		if e.json {
			return e.emit(map[string]string{"revoked": c.ID})
		}
		e.printf("%s works no more\n", c.ID)
		return nil
	})
}

type keysLogCmd struct {
	Limit int `default:"50" help:"At most so many (${default})."`
	dataFlags
}

// Help is shown by coverslip keys log --help.
func (keysLogCmd) Help() string { return "Example:\n  coverslip keys log --limit 10" }

// Run shows the audit log.
func (c *keysLogCmd) Run(e *env) error {
	return c.withDB(e, func(db *storage.DB) error {
		log, err := db.AuditLog(e, c.Limit)
		if err != nil {
			return err
		}
		rows := []string{"at\twho\taction\tpath\tstatus\tfrom"}
		for _, a := range log {
			if e.json {
				if err := e.emit(a); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%s", a.At.Format(time.DateTime), a.Who, a.Action, a.Path, a.Status, a.Remote))
		}
		if !e.json {
			e.table(rows...)
		}
		return nil
	})
}

// accessFlags say who is let in.
type accessFlags struct {
	RequireKey   bool   `name:"require-key" env:"COVERSLIP_REQUIRE_KEY" group:"Who is let in" help:"Ask for a key on loopback, too. Beyond it, one is always asked for (coverslip keys add)."`
	OIDCIssuer   string `name:"oidc-issuer" env:"COVERSLIP_OIDC_ISSUER" placeholder:"URL" group:"Who is let in" help:"Take tokens of this OpenID Connect provider beside keys."`
	OIDCAudience string `name:"oidc-audience" env:"COVERSLIP_OIDC_AUDIENCE" default:"coverslip" placeholder:"NAME" group:"Who is let in" help:"Audience that they must be for (${default}). Their scope or roles name coverslip:read, coverslip:write or coverslip:admin."`
	Rate         int    `env:"COVERSLIP_RATE" default:"6000" placeholder:"N" group:"Who is let in" help:"Requests a minute of one client; 0 is no limit (${default})."`
}

// gate is nil where nobody is asked: on an address that only this machine reaches.
func (f accessFlags) gate(e *env, db *storage.DB, addr string) (api.Gate, error) {
	if loopback(addr) && !f.RequireKey {
		return nil, nil
	}
	keys, err := db.APIKeys(e)
	if err != nil {
		return nil, err
	}
	works := slices.ContainsFunc(keys, func(k storage.APIKey) bool {
		return k.Revoked == nil && (k.Expires == nil || k.Expires.After(time.Now()))
	})
	if !works && f.OIDCIssuer == "" {
		e.say("nobody has a key yet, and every request takes one: coverslip keys add NAME --scope write\n")
	}
	return &doorkeeper{db: db, issuer: f.OIDCIssuer, audience: f.OIDCAudience}, nil
}

// loopback reports whether only this machine reaches an address.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// doorkeeper knows keys and, where there is a provider, tokens.
type doorkeeper struct {
	db               *storage.DB
	issuer, audience string

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier // nil until the provider was asked
}

// Identify says whose a credential is.
func (d *doorkeeper) Identify(ctx context.Context, credential string) (api.Identity, error) {
	if d.issuer != "" && strings.Count(credential, ".") == 2 {
		return d.token(ctx, credential)
	}
	k, err := d.db.APIKeyOf(ctx, credential)
	return api.Identity{Name: k.Name, Scope: api.Scope(k.Scope)}, err
}

func (d *doorkeeper) token(ctx context.Context, raw string) (api.Identity, error) {
	const op = "check the token"
	verifier, err := d.provider(ctx)
	if err != nil {
		return api.Identity{}, &coverslip.Error{Kind: coverslip.Unavailable, Op: op, Path: d.issuer, Err: err, Hint: "see that the OpenID Connect provider answers"}
	}
	token, err := verifier.Verify(ctx, raw)
	if err != nil {
		return api.Identity{}, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Err: err}
	}
	var claims struct {
		Scope string   `json:"scope"`
		Roles []string `json:"roles"`
		Email string   `json:"email"`
	}
	if err := token.Claims(&claims); err != nil {
		return api.Identity{}, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Err: err}
	}
	who := api.Identity{Name: claims.Email}
	if who.Name == "" {
		who.Name = token.Subject
	}
	for _, scope := range []api.Scope{api.Read, api.Write, api.Admin} {
		if slices.Contains(append(strings.Fields(claims.Scope), claims.Roles...), "coverslip:"+string(scope)) {
			who.Scope = scope
		}
	}
	if who.Scope == "" {
		return who, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Err: errors.New("it has no scope or role of coverslip")}
	}
	return who, nil
}

func (d *doorkeeper) provider(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.verifier == nil {
		provider, err := oidc.NewProvider(context.WithoutCancel(ctx), d.issuer) // it fetches keys with this context later
		if err != nil {
			return nil, err
		}
		d.verifier = provider.Verifier(&oidc.Config{ClientID: d.audience})
	}
	return d.verifier, nil
}

// auditor and repeats fill the API's doors of these names.
type auditor struct{ db *storage.DB }

func (a auditor) Audit(ctx context.Context, e api.AuditEntry) error {
	return a.db.Audit(ctx, storage.AuditEntry{Who: e.Who, Action: e.Action, Path: e.Path, Slide: e.Slide, Status: e.Status, Remote: e.Remote, RequestID: e.RequestID})
}

type repeats struct{ db *storage.DB }

func (r repeats) Claim(ctx context.Context, who, key string, request [32]byte) (*api.Answer, error) {
	s, err := r.db.ClaimIdempotencyKey(ctx, who, key, request)
	return (*api.Answer)(s), err
}

func (r repeats) Settle(ctx context.Context, who, key string, answer *api.Answer) error {
	return r.db.SettleIdempotencyKey(ctx, who, key, (*storage.Settled)(answer))
}

// keysOf fills the API's door of that name.
type keysOf struct{ db *storage.DB }

func apiKey(k storage.APIKey) api.Key {
	return api.Key{ID: k.ID, Name: k.Name, Scope: api.Scope(k.Scope), Created: k.Created.UTC(), Expires: k.Expires, Used: k.Used, Revoked: k.Revoked}
}

func (k keysOf) Keys(ctx context.Context) (out []api.Key, err error) {
	all, err := k.db.APIKeys(ctx)
	for _, one := range all {
		out = append(out, apiKey(one))
	}
	return out, err
}

func (k keysOf) AddKey(ctx context.Context, name string, scope api.Scope, expires *time.Time) (api.Key, string, error) {
	if expires != nil && expires.Before(time.Now()) {
		return api.Key{}, "", &coverslip.Error{Kind: coverslip.Invalid, Op: "add the key", Path: "expires", Err: errors.New("it is over"), Hint: "give a time to come, or none"}
	}
	one, secret, err := k.db.AddAPIKey(ctx, name, string(scope), expires)
	return apiKey(one), secret, err
}

func (k keysOf) RevokeKey(ctx context.Context, id string) error { return k.db.RevokeAPIKey(ctx, id) }

func (k keysOf) AuditLog(ctx context.Context, limit int) (out []api.AuditEntry, err error) {
	log, err := k.db.AuditLog(ctx, limit)
	for _, e := range log {
		out = append(out, api.AuditEntry{At: e.At.UTC(), Who: e.Who, Action: e.Action, Path: e.Path, Slide: e.Slide, Status: e.Status, Remote: e.Remote, RequestID: e.RequestID})
	}
	return out, err
}
