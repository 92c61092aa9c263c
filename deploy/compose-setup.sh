#!/usr/bin/env bash
# Makes what compose.yaml and compose.sqlite.yaml read: passwords, tokens, a certificate, and .env.
#
#   deploy/compose-setup.sh [NAME …]    # further names and addresses of this machine for the certificate
#
# What is there already stays. Needs openssl, and lightning-store-grpc or its image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
umask 077

# The containers run as who owns the files, so that nobody else need read them; for root, as the user of the image.
user=$(id -u) group=$(id -g)
if [ "$user" = 0 ]; then user=10001 group=10001; fi

store() {
  if command -v lightning-store-grpc >/dev/null; then
    lightning-store-grpc "$@"
  else
    docker run --rm --user "$user:$group" --volume "$PWD/private:/private" --workdir /private \
      lightning-store-grpc:0.1.0 "${@/#private\//}"
  fi
}

own() { if [ "$(id -u)" = 0 ]; then chown -R "$user:$group" private; fi; }

mkdir -p private/store private/database private/clients private/data
own

if [ ! -e private/database/pgpass ]; then
  password=$(openssl rand -hex 24)
  printf '%s' "$password" >private/database/postgres_password
  printf 'postgres:5432:store:store:%s\n' "$password" >private/database/pgpass
fi

if [ ! -e private/store/server.pem ]; then
  names="DNS:localhost, IP:127.0.0.1, DNS:store, DNS:store-a, DNS:store-b"
  for name in "$@"; do
    case $name in
      *:*) names+=", IP:$name" ;;
      *[!0-9.]*) names+=", DNS:$name" ;;
      *) names+=", IP:$name" ;;
    esac
  done
  made=$(mktemp -d)
  trap 'rm -rf "$made"' EXIT
  printf 'subjectAltName = %s\n' "$names" >"$made/names"
  openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=lightning-store CA" \
    -keyout private/ca.key -out private/clients/ca.pem 2>"$made/log" || { cat "$made/log" >&2; exit 1; }
  openssl req -newkey rsa:2048 -nodes -subj /CN=lightning-store -keyout private/store/server.key -out "$made/csr" 2>"$made/log"
  openssl x509 -req -in "$made/csr" -CA private/clients/ca.pem -CAkey private/ca.key -set_serial "0x$(openssl rand -hex 16)" \
    -days 365 -extfile "$made/names" -out private/store/server.pem 2>"$made/log"
  cp private/clients/ca.pem private/store/ca.pem
fi

if [ ! -e private/store/tokens.json ]; then
  for role in algorithm runner reader admin; do
    store token create "$role" --role "$role" --auth-tokens private/store/tokens.json >"private/clients/$role.token"
  done
fi
own

if [ ! -e .env ]; then
  printf 'STORE_USER=%s:%s\nSTORE_BIND=127.0.0.1\n' "$user" "$group" >.env
fi
echo "deploy/private has what the containers read; its folder clients is for the clients: ca.pem, and a token for each role"
