#!/bin/sh
# Gives Garage's bucket the rules of garage-lifecycle.json beside this file: entries that nobody refreshed for longer than
# any may be fresh expire, and so does what is left of uploads that broke off. Compose runs it once Garage is healthy; it may
# run again any time. Needs curl, and GARAGE_ADMIN_TOKEN and GARAGE_DEFAULT_BUCKET as Garage has them.
set -eu

api=${GARAGE_ADMIN_URL:-http://127.0.0.1:3903}/v2
token="Authorization: Bearer $GARAGE_ADMIN_TOKEN"

bucket=$(curl -fsS -H "$token" "$api/GetBucketInfo?globalAlias=$GARAGE_DEFAULT_BUCKET")
# The first id in the answer is the bucket's own.
id=$(printf %s "$bucket" | grep -o '"id": *"[0-9a-f]*"' | head -n 1 | cut -d '"' -f 4)
curl -fsS -o /dev/null -H "$token" --data-binary "@$(dirname "$0")/garage-lifecycle.json" "$api/UpdateBucket?id=$id"
echo "lifecycle rules of bucket $GARAGE_DEFAULT_BUCKET are set"
