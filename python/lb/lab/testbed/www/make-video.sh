#!/usr/bin/env bash
# Makes the website's video with ffmpeg: a test pattern with a clock and a beep every second, in three bitrates, cut
# into chunks. Usage: make-video.sh DIRECTORY (made when missing; default: vod beside this script).
#
#   video.m3u8                 HLS playlist that names the three below
#   1000.m3u8                  playlist of one bitrate: 1000-init.mp4, then its chunks
#   1000Seg2-Frag7.m4s         chunk 7 of 1000 kbit/s (fragmented MP4: H.264, AAC); 1000Seg2-Frag7 is the same file
set -euo pipefail

DURATION_S=60
CHUNK_S=4
FPS=25
# Of one bitrate: kbit/s in all, picture, kbit/s of video and of sound. What is left over is the container's.
VARIANTS=("100 320:180 72 20" "500 640:360 440 48" "1000 854:480 920 64")
CODECS=avc1.4d401f,mp4a.40.2 # H.264 main profile, level 3.1; AAC-LC

command -v ffmpeg >/dev/null || {
    echo "make-video.sh: ffmpeg is not installed: install it (Debian: apt install ffmpeg)" >&2
    exit 1
}
target=${1:-$(dirname "$0")/vod}
mkdir -p "$(dirname "$target")"
target=$(realpath "$(dirname "$target")")/$(basename "$target")
# Made aside and moved at the end: what has the name is complete.
work=$(mktemp -d "$target.XXXXXX")
trap 'rm -rf "$work"' EXIT

filter="[0:v]split=${#VARIANTS[@]}"
for variant in "${VARIANTS[@]}"; do filter+="[in${variant%% *}]"; done
outputs=()
for variant in "${VARIANTS[@]}"; do
    read -r total size video sound <<<"$variant"
    box="fontcolor=white:box=1:boxcolor=black@0.7:boxborderw=6:fontsize=h/9"
    filter+=";[in$total]scale=$size,drawtext=text='%{pts\\:hms}':x=(w-tw)/2:y=h*0.68:$box"
    filter+=",drawtext=text='$total kbit/s   chunk %{eif\\:floor(t/$CHUNK_S)+1\\:d}':x=(w-tw)/2:y=h*0.85:${box}[out$total]"
    outputs+=(
        -map "[out$total]" -map 1:a
        -c:v libx264 -preset veryfast -profile:v main -level 3.1 -pix_fmt yuv420p -bf 0
        -b:v "${video}k" -maxrate "${video}k" -bufsize "${video}k"
        # Every chunk starts with a key frame and has no other: chunks of all bitrates cover the same time.
        -g $((FPS * CHUNK_S)) -keyint_min $((FPS * CHUNK_S)) -sc_threshold 0
        -c:a aac -b:a "${sound}k" -ac 1 -ar 48000
        -f hls -hls_time "$CHUNK_S" -hls_playlist_type vod -hls_segment_type fmp4 -start_number 1
        -hls_fmp4_init_filename "$total-init.mp4" -hls_segment_filename "$work/${total}Seg2-Frag%d.m4s" "$work/$total.m3u8"
    )
done
ffmpeg -hide_banner -loglevel error -nostdin -y \
    -f lavfi -i "testsrc2=size=854x480:rate=$FPS:duration=$DURATION_S" \
    -f lavfi -i "sine=frequency=330:beep_factor=4:duration=$DURATION_S,volume=0.25" \
    -filter_complex "$filter" "${outputs[@]}"

{
    printf '#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n'
    for variant in "${VARIANTS[@]}"; do
        read -r total size _ <<<"$variant"
        printf '#EXT-X-STREAM-INF:BANDWIDTH=%d,AVERAGE-BANDWIDTH=%d,RESOLUTION=%s,CODECS="%s"\n%s\n' $((total * 1100)) $((total * 1000)) "${size/:/x}" "$CODECS" "$total.m3u8"
    done
} >"$work/video.m3u8"
# The names that load files have always asked for.
for chunk in "$work"/*.m4s; do ln -s "$(basename "$chunk")" "${chunk%.m4s}"; done
chmod 755 "$work"
rm -rf "$target"
mv -T "$work" "$target"
