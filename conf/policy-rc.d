#!/bin/sh
# Shown at /usr/sbin/policy-rc.d while `ojail layer derive` runs: invoke-rc.d(8) then starts no service, because 101 means that the
# act is not allowed. It does not become part of the layer.
exit 101
