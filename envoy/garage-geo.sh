#!/bin/sh
# Makes one store of a Garage node in each zone: connects the nodes, gives every zone a copy of everything, makes Afterimage's
# bucket with its lifecycle rules, and a bucket `originals` for imgproxy's sources, with the photos in /photos. compose.geo.yml
# runs it beside zone a's node at every start; what is so already stays. Needs curl, beside this file garage-lifecycle.sh, and
#   ZONES                        zone=host of each node, the first one being ours: "a=pod-a b=pod-b c=pod-c"
#   GARAGE_ADMIN_TOKEN           as Garage has it
#   GARAGE_DEFAULT_BUCKET, GARAGE_DEFAULT_ACCESS_KEY, GARAGE_DEFAULT_SECRET_KEY     Afterimage's
#   READER_ACCESS_KEY, READER_SECRET_KEY, WRITER_ACCESS_KEY, WRITER_SECRET_KEY      for `originals`
set -eu

newline='
'

# api HOST OPERATION [BODY]: the answer of the admin API. What exists already (409) is no error.
api() {
  answer=$(curl -sS --retry 30 --retry-delay 1 --retry-all-errors -w '\n%{http_code}' -H "Authorization: Bearer $GARAGE_ADMIN_TOKEN" ${3:+--data-binary "$3"} \
    "http://$1:3903/v2/$2")
  case ${answer##*"$newline"} in
    2??|409) printf '%s\n' "${answer%"$newline"*}" ;;
    *) echo "Garage at $1 refuses $2: $answer" >&2; exit 1 ;;
  esac
}

# first FIELD: the first string of that name in the JSON on standard input.
first() { grep -o "\"$1\": *\"[^\"]*\"" | head -n 1 | cut -d '"' -f 4; }

# allow BUCKET KEY SECRET PERMISSIONS: makes a bucket and a key where they are missing, and lets the key use the bucket.
allow() {
  api "$ours" ImportKey "{\"accessKeyId\": \"$2\", \"secretAccessKey\": \"$3\", \"name\": \"$2\"}" >/dev/null
  api "$ours" CreateBucket "{\"globalAlias\": \"$1\"}" >/dev/null
  bucket=$(api "$ours" "GetBucketInfo?globalAlias=$1")
  id=$(printf %s "$bucket" | first id)
  api "$ours" AllowBucketKey "{\"bucketId\": \"$id\", \"accessKeyId\": \"$2\", \"permissions\": {$4}}" >/dev/null
}

ours= peers= roles=
for zone in $ZONES; do
  host=${zone#*=}
  ours=${ours:-$host}
  node=$(api "$host" GetNodeInfo?node=self)
  id=$(printf %s "$node" | first nodeId)
  peers="$peers${peers:+, }\"$id@$host:3901\""
  roles="$roles${roles:+, }{\"id\": \"$id\", \"zone\": \"${zone%%=*}\", \"capacity\": 10737418240, \"tags\": []}"
done

for zone in $ZONES; do
  connected=$(api "${zone#*=}" ConnectClusterNodes "[$peers]")
  case $connected in
    *false*) echo "a zone cannot be reached: $connected" >&2; exit 1 ;;
  esac
done
layout=$(api "$ours" GetClusterLayout)
if printf %s "$layout" | grep -q '"version": *0,'; then
  api "$ours" UpdateClusterLayout "{\"roles\": [$roles]}" >/dev/null
  api "$ours" ApplyClusterLayout '{"version": 1}' >/dev/null
fi
for zone in $ZONES; do
  until curl -fsS -o /dev/null "http://${zone#*=}:3903/health"; do sleep 1; done
done
echo "zones: $ZONES"

allow "$GARAGE_DEFAULT_BUCKET" "$GARAGE_DEFAULT_ACCESS_KEY" "$GARAGE_DEFAULT_SECRET_KEY" \
  '"read": true, "write": true, "owner": true'
sh "$(dirname "$0")/garage-lifecycle.sh"

allow originals "$READER_ACCESS_KEY" "$READER_SECRET_KEY" '"read": true'
allow originals "$WRITER_ACCESS_KEY" "$WRITER_SECRET_KEY" '"write": true'
for photo in /photos/*.jpg /photos/*.png; do
  curl -fsS -o /dev/null --aws-sigv4 aws:amz:garage:s3 --user "$WRITER_ACCESS_KEY:$WRITER_SECRET_KEY" \
    -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' -T "$photo" "http://127.0.0.1:3900/originals/${photo##*/}"
done
echo "the photos are in the bucket originals"
