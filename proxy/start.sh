#!/bin/sh
# Says which of the Caddyfile's three ways to a certificate TLS_CERTIFICATE asks for, and becomes the
# command.
set -eu

export TLS_WAY=own TLS_AUTOMATIC=disable_certs ACME_URL=
case $TLS_CERTIFICATE in
  '') TLS_WAY=internal ;;
  acme) TLS_WAY=acme ACME_URL=https://acme-v02.api.letsencrypt.org/directory ;;
  https://*) TLS_WAY=acme ACME_URL=$TLS_CERTIFICATE ;;
esac
[ "$TLS_WAY" = own ] || TLS_AUTOMATIC=disable_redirects

# A company's ACME server has a certificate of a CA that this host trusts, and Debian doesn't.
if [ -s /run/secrets/ca_bundle ]; then export SSL_CERT_FILE=/run/secrets/ca_bundle; fi

exec "$@"
