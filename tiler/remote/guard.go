package remote

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"coverslip"
)

// publicMark at the end of an address keeps it to the public Internet, wherever it is stored.
const publicMark = "#public"

// Public returns an address that Open, and List, only follow to machines on the public Internet: for
// addresses that somebody else gave, who could else have this machine read from its neighbours, from
// the metadata service of its cloud, or from itself. What counts is where a connection really goes, so
// that neither redirects nor names that change help. Proxies are not used, and an S3 endpoint that is
// part of the address gets no credentials.
func Public(address string) string {
	if strings.HasSuffix(address, publicMark) {
		return address
	}
	return address + publicMark
}

// publicTransport is the transport of such addresses, with connections of its own.
var publicTransport = sync.OnceValue(func() *http.Transport { return guarded(isPublic) })

// guarded is a transport that connects only where allowed says so.
func guarded(allowed func(netip.AddrPort) bool) *http.Transport {
	t := transport().Clone()
	t.Proxy = nil
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err == nil && allowed(to) {
			return nil
		}
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Err: fmt.Errorf("it leads to %s, which is not on the public Internet", address),
			Hint: "upload the slide, or register it with coverslip ingest"}
	}}
	t.DialContext = dialer.DialContext
	return t
}

// elsewhere are the special-purpose addresses (IANA registries, RFC 6890) that net/netip has no word
// for, and the IPv6 ones that stand for an IPv4 one.
var elsewhere = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)

// global is all of IPv6 that is given out, without NAT64, IPv4-compatible and site-local addresses.
var global = netip.MustParsePrefix("2000::/3")

func isPublic(to netip.AddrPort) bool {
	a := to.Addr().Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.Is6() && (a.Zone() != "" || !global.Contains(a)) {
		return false
	}
	for _, p := range elsewhere {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
