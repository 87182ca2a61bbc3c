#!/bin/bash
# A complete worker in bash and psql: runs one job at a time, keeps its lease, honours aborts, drains on SIGTERM.
#
#     worker.sh FOLDER [QUEUE[,QUEUE]]
#
# A task is an executable in FOLDER. It gets the arguments as JSON on stdin; what it prints is the result. When the job
# should stop it gets SIGTERM; dying of it means aborted. When its grace is over it is killed. libpq's variables name
# the database. Contract: docs/sql-contract.md.
set -u
folder=$1 queues=${2-} lease=${LEASE:-30} every=${POLL:-1} stopping=''
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT; trap 'stopping=yes' TERM INT

sql() { # runs the statement on stdin, in a transaction of its own; values are psql variables (-v), which :'name' quotes
    psql -XqAt -F $'\t' -v ON_ERROR_STOP=1 -v VERBOSITY=sqlstate -v worker="${worker-}" -v queues="$queues" "$@" 2>"$tmp/sql"
}

register() { # answers the worker's id: a new one, or the old one again
    sql -v host="$(hostname)" -v pid=$$ -v lease="$lease" <<'SQL'
SELECT pljobs.register_worker_v2('bash', :'host', :pid, contract => 2, driver => 'example-bash',
    queues => string_to_array(nullif(:'queues', ''), ','), lease => make_interval(secs => :lease),
    worker_id => nullif(:'worker', '')::bigint);
SQL
}

heartbeat() { # renews the lease; $1: the run at work, or nothing; sets $verdict: ok, abort, kill, lost
    until verdict=$(sql -v run="${1-}" <<'SQL'
SELECT max(h.verdict) FILTER (WHERE h.run_id = nullif(:'run', '')::bigint)
  FROM pljobs.heartbeat_v1(:worker, array_remove(ARRAY[nullif(:'run', '')::bigint], NULL)) AS h;
SQL
    ); do
        cat "$tmp/sql" >&2
        if grep -q PJ003 "$tmp/sql"; then register >/dev/null; else sleep "$every"; fi
    done
}

fetch() { # only what this folder has: another worker may know the other tasks
    sql -v tasks="$(ls "$folder")" <<'SQL'
SELECT f.job_id, f.run_id, f.task, f.args FROM pljobs.fetch_jobs_v1(:worker, 1,
    queues => string_to_array(nullif(:'queues', ''), ','), tasks => string_to_array(:'tasks', E'\n')) AS f;
SQL
}

text() { head -c 16000 "$1" | tr -d '\000' | iconv -c -f UTF-8 -t UTF-8; } # what PostgreSQL can hold of it

finish() { # $1 job, $2 run, $3 outcome; again until answered: a replay is answered what was written the first time
    until sql -v job="$1" -v run="$2" -v outcome="$3" -v out="$(text "$tmp/out")" -v err="$(text "$tmp/err")" <<'SQL'
SELECT format('job %s: %s', a.job_id, a.status) FROM pljobs.finish_jobs_v1(jsonb_build_array(jsonb_build_object(
    'job_id', :job, 'run_id', :run, 'outcome', :'outcome', 'result', nullif(:'out', ''), 'error', nullif(:'err', '')))) AS a;
SQL
    do cat "$tmp/sql" >&2; sleep "$every"; done
}

run() { # $1 job, $2 run, $3 task, $4 arguments
    local asked='' code; printf %s "$4" >"$tmp/args"
    setsid "$folder/$3" <"$tmp/args" >"$tmp/out" 2>"$tmp/err" & # a process group of its own, to be stopped as a whole
    local pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        heartbeat "$2"
        if [ "$verdict" = kill ]; then # it has had its grace
            kill -KILL -- "-$pid" 2>/dev/null && asked=kill
        elif [ -z "$asked" ] && [ "$verdict$stopping" != ok ]; then
            # abort, lost; ok: it is only this worker that stops. Again, if the process group isn't there yet.
            kill -TERM -- "-$pid" 2>/dev/null && asked=$verdict
        fi
        timeout "$every" tail --pid="$pid" -s 0.05 -f /dev/null
    done
    wait "$pid"; code=$?
    case $code/$asked in
        0/*) finish "$1" "$2" succeeded ;;
        143/ok) finish "$1" "$2" interrupted ;; # goes back to todo, the attempt is not charged
        143/?*) finish "$1" "$2" aborted ;;
        137/kill) finish "$1" "$2" killed ;;
        *) finish "$1" "$2" failed ;;
    esac
}

worker=$(register) || { cat "$tmp/sql" >&2; exit 1; }
while [ -z "$stopping" ]; do
    heartbeat
    IFS=$'\t' read -r job run_id task args < <(fetch) && run "$job" "$run_id" "$task" "$args" || sleep "$every"
done
sql <<<'SELECT pljobs.unregister_worker_v1(:worker);'
