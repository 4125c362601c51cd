#!/bin/sh
# Install Debian's Chromium where it is missing, for the tests of the page; say why when it cannot be.
# It never fails: without it those tests are skipped, and say so.
command -v chromium >/dev/null 2>&1 && exit 0
why() {
    echo "No Chromium for the tests of the page: $1. They will be skipped." >&2
    exit 0
}
command -v apt-get >/dev/null 2>&1 || why "there is no apt-get; install the package chromium by hand"
[ "$(id -u)" = 0 ] || why "apt-get needs root; run: sudo apt-get install chromium"
export DEBIAN_FRONTEND=noninteractive
echo "Installing Debian's Chromium for the tests of the page ..." >&2
apt-get update -qq >&2 || why "the package index cannot be reached"
apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null || why "apt-get cannot install it"
