# The device's half of a deployment, one function a step: needs a POSIX shell and the small tools of coreutils or
# BusyBox, and stays nowhere. Sent whole with every message:   sh -c THIS edgecsi STEP PLACE TOKEN [ARGUMENT…]
#
#   PLACE/releases/<digest>/   bundles, whole; a process may have their files mapped, so they are never written to
#   PLACE/states/<token>/      links `current` and `previous` to releases
#   PLACE/now                  link to a state: replacing it in one rename moves `current` and `previous` at once
#   PLACE/current, previous    links now/current and now/previous
#   PLACE/incoming/            what is not finished; anything here may go at any time
#   PLACE/lock                 link to nowhere, whose text says who deploys: TOKEN BOOT SECONDS OWNER
#
# Whatever interrupts this, `now` points to the old state or to the new one, and both are whole.
set -eu
LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
export LC_ALL PATH
umask 022

CHANGED=71 UNTRUSTED=72 NOTHING=73 NOEXEC=74 LOST=75 LOCKED=76 SHORT=77 WHICH=78

die() { # CODE TEXT…
    code=$1
    shift
    printf '%s\n' "$*" >&2
    exit "$code"
}

owned() { # the lock is (still) ours
    case $(readlink lock || :) in
    "$token "*) ;;
    *) die $LOST "the lock was taken over" ;;
    esac
}

boot() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown; }

flush() { # FILE…: write through to the disk, folders as well
    if sync --help 2>&1 | grep -q FILE; then sync "$@"; else sync; fi
}

# The manifest is canonical JSON, so its list of files looks like this and nothing else in it does.
list() { # RELEASE: lines `SHA256  NAME`
    grep -o '"[A-Za-z0-9._/-]*":{"bytes":[0-9]*,"sha256":"[0-9a-f]\{64\}"}' "$1/manifest.json" |
        sed 's/^"\([^"]*\)":{"bytes":[0-9]*,"sha256":"\([0-9a-f]*\)"}$/\2  \1/'
}

changes() { # RELEASE DIGEST: what is not as it was built; nothing if all is well
    if [ ! -f "$1/manifest.json" ]; then
        echo "manifest.json is missing"
        return
    fi
    found=$(sed 's/,"digest":"[0-9a-f]\{64\}"//' "$1/manifest.json" | tr -d '\n' | sha256sum)
    if [ "${found%% *}" != "$2" ]; then
        echo "manifest.json was changed"
        return
    fi
    [ -n "$(list "$1")" ] || echo "manifest.json lists no files"
    list "$1" | while read -r sum name; do
        if [ ! -f "$1/$name" ]; then
            echo "$name is missing"
        else
            found=$(sha256sum <"$1/$name" || :)
            [ "${found%% *}" = "$sum" ] || echo "$name was changed"
        fi
    done
}

whole() { # RELEASE DIGEST
    changed=$(changes "$1" "$2")
    [ -z "$changed" ] || die $CHANGED "$(echo "$changed" | head -n 3 | tr '\n' ',' | sed 's/,$//; s/,/, /g')"
}

trusted() { # RELEASE: signed by somebody in the device's list, if it has one
    if [ -e /etc/edgecsi/allowed_signers ]; then
        signers=/etc/edgecsi/allowed_signers
    elif [ -e "$HOME/.config/edgecsi/allowed_signers" ]; then
        signers=$HOME/.config/edgecsi/allowed_signers
    else
        return 0
    fi
    command -v ssh-keygen >/dev/null || die $UNTRUSTED "there is $signers, but no ssh-keygen to check with"
    signature=$1/manifest.json.sig
    [ -f "$signature" ] || die $UNTRUSTED "it is not signed, and $signers says who has to"
    who=$(ssh-keygen -Y find-principals -f "$signers" -s "$signature" 2>/dev/null | head -n 1) || :
    [ -n "$who" ] || die $UNTRUSTED "it is signed by nobody in $signers"
    ssh-keygen -Y verify -f "$signers" -I "$who" -n edgecsi-bundle -s "$signature" <"$1/manifest.json" \
        >/dev/null 2>&1 || die $UNTRUSTED "its signature is not one of these files"
}

target_of() { # LINK: the name of the release it means
    found=$(readlink "now/$1") || return 0
    printf '%s' "${found##*/}"
}

switch() { # CURRENT PREVIOUS: names of releases, PREVIOUS may be empty
    mkdir "states/$token"
    ln -s "../../releases/$1" "states/$token/current"
    [ -z "$2" ] || ln -s "../../releases/$2" "states/$token/previous"
    flush "states/$token" states releases
    ln -s "states/$token" "incoming/now.$token"
    owned
    mv -T "incoming/now.$token" now
    flush .
}

remove() { # RELEASE: never half there under its name
    mv -T "releases/$1" "incoming/gone.$1.$token"
    rm -rf "incoming/gone.$1.$token"
}

# ---- steps ------------------------------------------------------------------------------------------------

lock() { # OWNER SECONDS SEEN: SEEN is the token of a lock whose owner is known to be gone
    mkdir -p "$place/releases" "$place/incoming" "$place/states"
    cd "$place"
    [ -L current ] || ln -s now/current current
    [ -L previous ] || ln -s now/previous previous
    mine="$token $(boot) $2 $1"
    ! ln -sn "$mine" lock 2>/dev/null || return 0
    held=$(readlink lock) || {
        [ ! -e lock ] || die 1 "$place/lock is none of ours"
        rm -rf incoming/* # nobody deploys, so this is of no use; and the disk may be full
        ln -sn "$mine" lock
        return 0
    }
    rest=${held#* }
    if [ "${held%% *}" = "$3" ] || [ "${rest%% *}" != "$(boot)" ]; then
        ln -s "$mine" "incoming/lock.$token"
        mv -T "incoming/lock.$token" lock
        return
    fi
    printf 'held %s\n' "$held"
    printf 'life %s\n' "$(ls -lnR incoming 2>/dev/null | cksum)"
    exit $LOCKED
}

unlock() {
    owned
    rm -f lock
}

survey() { # what is there: the sha256 of every file, the manifest of what is current; changes nothing
    cd "$place" 2>/dev/null || return 0
    [ ! -e lock ] || die 1 "$place/lock is none of ours"
    echo "current $(target_of current)"
    echo "previous $(target_of previous)"
    [ ! -d releases ] || find releases -type f -exec sha256sum {} + | sed 's/^/file /'
    if [ -f now/current/manifest.json ]; then printf 'manifest ' && cat now/current/manifest.json; fi
}

stage() { # [NAME SOURCE]…: take from here what is here already; prints how much space is left
    owned
    rm -rf incoming/* # what others left unfinished
    mkdir "incoming/$token"
    printf '#!/bin/sh\nexit 0\n' >"incoming/try"
    chmod 755 incoming/try
    ./incoming/try 2>/dev/null || die $NOEXEC "programs cannot run from $place"
    rm incoming/try
    while [ $# -gt 0 ]; do
        case $1 in */*) mkdir -p "incoming/$token/${1%/*}" ;; esac
        [ -z "$2" ] || cp "$2" "incoming/$token/$1"
        shift 2
    done
    df -Pk . | sed -n '$s/.* \([0-9][0-9]*\)  *[0-9-]*% .*/\1/p'
}

receive() { # NAME BYTES < content
    owned
    cat >"incoming/$token/$1"
    [ "$(wc -c <"incoming/$token/$1")" -eq "$2" ] || die $SHORT "$1 was cut short"
}

verify() { # DIGEST
    owned
    whole "incoming/$token" "$1"
}

settle() { # DIGEST: from incoming/ to releases/; prints the release's name
    owned
    find "incoming/$token" -type f -exec chmod 644 {} +
    if sync --help 2>&1 | grep -q FILE; then find "incoming/$token" -exec sync {} +; else sync; fi
    name=$1
    if [ -e "releases/$1" ]; then
        if [ -z "$(changes "releases/$1" "$1")" ]; then # only the signature can be another
            [ ! -f "incoming/$token/manifest.json.sig" ] || mv -f "incoming/$token/manifest.json.sig" "releases/$1"
            rm -rf "incoming/$token"
            flush "releases/$1"
            echo "$name"
            return
        fi
        name=$1.$token # that one may be in use: a sound copy goes beside it
    fi
    mv -T "incoming/$token" "releases/$name"
    flush releases
    echo "$name"
}

activate() { # RELEASE
    owned
    whole "releases/$1" "${1%%.*}"
    trusted "releases/$1"
    old=$(target_of current)
    [ "$old" != "$1" ] || return 0
    # A sound copy replaces a damaged one: that is not what to go back to.
    [ "${old%%.*}" != "${1%%.*}" ] || old=$(target_of previous)
    switch "$1" "$old"
}

discard() { # RELEASE: if nothing points to it
    owned
    [ "$1" != "$(target_of current)" ] && [ "$1" != "$(target_of previous)" ] || return 0
    [ ! -d "releases/$1" ] || remove "$1"
}

prune() { # KEEP: as many releases stay, the newest, and always `current` and `previous`
    owned
    current=$(target_of current) previous=$(target_of previous) left=$1
    for name in $current $previous; do left=$((left - 1)); done
    for name in $(ls -1t releases); do
        case $name in *[!0-9a-f.]*) continue ;; esac
        [ "$name" != "$current" ] && [ "$name" != "$previous" ] || continue
        [ "${name%%.*}" != "${current%%.*}" ] || remove "$name" # the damaged copy
        left=$((left - 1))
        [ $left -ge 0 ] || [ ! -d "releases/$name" ] || remove "$name"
    done
    for old in states/*; do
        [ "$old" = "$(readlink now || :)" ] || rm -rf "$old"
    done
    rm -rf incoming/*
}

names() { # of the bundles, PLACE being the folder of all
    for folder in "$place"/*/; do
        [ ! -d "$folder/releases" ] || (name=${folder%/} && echo "${name##*/}")
    done
}

only_rollback() { # the same for the one bundle there is, PLACE being the folder of all
    found=$(names)
    case $found in
    "" | *[!A-Za-z0-9._-]*) # none, or a line each
        printf '%s\n' "$found"
        exit $WHICH
        ;;
    esac
    place=$place/$found
    rollback "$@"
}

rollback() { # OWNER SECONDS SEEN: locks, goes to what `previous` means, and unlocks
    [ -d "$place/releases" ] || die $NOTHING "it has no such bundle"
    lock "$@"
    trap unlock EXIT
    old=$(target_of current) to=$(target_of previous)
    [ -n "$to" ] || die $NOTHING "nothing was active before"
    whole "releases/$to" "${to%%.*}"
    trusted "releases/$to"
    switch "$to" "$old"
    echo "$old $to ${place##*/}"
}

status() { # PLACE is the folder of all bundles: what is active there, and is it what was deployed?
    for folder in "$place"/*/; do
        [ -d "$folder/releases" ] && cd "$folder" || continue
        name=${folder%/}
        printf 'bundle %s\n' "${name##*/}"
        for link in current previous; do
            release=$(target_of $link)
            [ -n "$release" ] || continue
            echo "$link $release"
            if [ -d "releases/$release" ]; then
                changes "releases/$release" "${release%%.*}" | sed 's/^/changed /'
            else
                echo "changed the whole release is missing"
            fi
            (trusted "releases/$release") 2>&1 | sed 's/^/untrusted /'
        done
        ls -1 releases | sed 's/^/release /'
        ! held=$(readlink lock) || printf 'held %s\n' "$held"
        if [ -f now/current/manifest.json ]; then printf 'manifest ' && cat now/current/manifest.json && echo; fi
    done
}

step=$1 place=$2 token=$3
shift 3
case $place in /*) ;; *) place=$HOME/$place ;; esac
case $step in lock | rollback | only_rollback | survey | status) ;; *) cd "$place" ;; esac
"$step" "$@"
