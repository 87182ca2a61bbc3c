#!/usr/bin/env node
// A complete worker in Node.js: runs several jobs at once, keeps its lease, honours aborts, drains on SIGTERM.
//
//     node worker.mjs TASKS.mjs [QUEUE[,QUEUE]]
//
// TASKS.mjs exports an object of functions by the tasks' names (see tasks.mjs). Each is called with the arguments and a
// context { job, signal, progress(fraction, message) }; what it answers is the result. When the job should stop, the
// AbortSignal says so; rejecting with its reason, or with any AbortError, means stopped. A task that blocks the event
// loop can't be told, and costs the worker its lease: let it compute in a worker_thread or a process of its own.
// libpq's variables (PGHOST, PGDATABASE, ...) name the database. Contract: docs/sql-contract.md.
import { createHash } from 'node:crypto';
import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { Alarm, Link, repeat, say } from './link.mjs';

const CONTRACT = 2;
const { default: tasks } = await import(pathToFileURL(resolve(process.argv[2])));
const queues = process.argv[3]?.split(',') ?? null;
let hashes = null; // what notifications call them; null: look at each
try {
    hashes = queues?.map((queue) => createHash('md5').update(queue).digest('hex')) ?? null;
} catch { /* no md5 on a machine in FIPS mode */ }
const setting = (name, value) => Number(process.env[name] ?? value);
const concurrency = setting('CONCURRENCY', 4);
const lease = 1000 * setting('LEASE', 30); // within it a heartbeat must be answered, else others take the jobs
const poll = 1000 * setting('POLL', 5); // how often to look where no notification came
const grace = 1000 * setting('GRACE', 10); // from SIGTERM until running jobs are asked to stop

const VERSION = 'SELECT release, oldest, newest FROM pljobs.get_contract_v1()';
const REGISTER = `SELECT pljobs.register_worker_v2('node', $1, $2, ${CONTRACT}, 'example-node', queues => $3,
    concurrency => $4, lease => make_interval(secs => $5), worker_id => $6) AS id`;
// Intervals as milliseconds. Ids are bigint, and stay the strings that pg makes of them.
const HEARTBEAT = `SELECT run_id, verdict, level, sql_way, requested_by, reason,
    1000 * extract(epoch FROM look_in)::float8 AS look_in FROM pljobs.heartbeat_v1($1, $2, $3::jsonb)`;
const FETCH = `SELECT job_id, run_id, queue, task, args, attempts, 1000 * extract(epoch FROM timeout)::float8 AS timeout
    FROM pljobs.fetch_jobs_v1($1, $2, $3, $4)`;
const FINISH = 'SELECT job_id, run_id, status FROM pljobs.finish_jobs_v1($1::jsonb, wait => false)';
const HOUSEKEEPING = ['SELECT FROM pljobs.rescue_jobs_v1()', 'SELECT FROM pljobs.enforce_limits_v1()',
    'SELECT pljobs.wake_lanes_v1()'];

const held = new Map(); // run_id -> Run, from its fetch until its end is answered
const outbox = new Map(); // run_id -> how it ended
const now = () => performance.now();
const [fetchAlarm, beatAlarm, sendAlarm] = [new Alarm(), new Alarm(), new Alarm()];
let worker = null; // its id
let [stopping, fetched, drained, tainted] = [false, false, false, false];

// Two connections: nothing that a job or a report waits for may stop the heartbeat.
const patience = Math.min(15_000, lease / 2);
const work = new Link('work', patience);
const control = new Link('control', patience, async (client) => {
    client.on('notification', ({ channel, payload }) => {
        if (channel !== 'pljobs_todo') look();
        else if (!payload || !hashes || hashes.includes(payload)) fetchAlarm.ring();
    });
    await client.query(`LISTEN pljobs_todo; LISTEN pljobs_worker_${worker}`);
    fetchAlarm.ring(); // LISTEN, then look: what was said meanwhile is gone
}, () => look());

class Run { // one run of one job
    controller = new AbortController();

    constructor(job) {
        this.job = job;
        this.lookAt = now() + (job.timeout ?? Infinity); // when to call the heartbeat, at the latest
        held.set(job.run_id, this);
    }

    start() {
        const { job_id, run_id, task, args } = this.job;
        say(`job ${job_id} (${task}): starts, run ${run_id}`);
        const progress = (fraction, message) => {
            this.seen = { ...this.seen, progress: fraction, progress_message: message };
        };
        const body = async () => tasks[task](args, { job: this.job, signal: this.controller.signal, progress });
        body().then((result) => this.end({ outcome: 'succeeded', result }), (error) => this.end(this.ending(error)))
            .catch((error) => this.end({ outcome: 'failed', error: error.stack })); // retryIn's own
    }

    ending(error) { // by facts: was it told to stop, and is that what came up?
        const told = this.why && (error === this.controller.signal.reason || error?.name === 'AbortError');
        return {
            outcome: !told ? 'failed' : this.why === 'abort' ? 'aborted' : 'interrupted',
            message: told ? undefined : String(error?.message ?? error), error: error?.stack,
            sql_cancelled: error?.code === '57014', retry_in: tasks[this.job.task].retryIn?.(this.job.attempts),
        };
    }

    stop(why, message) {
        if (this.why || this.ended) return;
        this.why = why;
        say(`job ${this.job.job_id}: is told to stop: ${message}`);
        this.controller.abort(Object.assign(new Error(message), { name: 'AbortError', why }));
    }

    async hear({ verdict, level, look_in, sql_way, requested_by, reason }) {
        this.lookAt = look_in === null ? Infinity : now() + Math.max(look_in, 50);
        if (verdict === 'lost') this.stop('lost', 'the job is no longer this run\'s');
        if (verdict === 'abort' || verdict === 'kill') this.stop('abort', `${requested_by} asks: ${reason}`);
        // At level 3 nothing stronger is at hand than the signal, which is raised once. At 4, what has had a second and
        // has not settled is given up, though its code may still run.
        if (verdict === 'kill') this.last ??= setTimeout(() => this.end({ outcome: 'abandoned' }), 1000);
        if (sql_way === 'asked' && level >= 2 && !this.ended) {
            const [{ way }] = await control.call('SELECT pljobs.cancel_sql_v1($1) AS way', [this.job.run_id]);
            this.seen = { ...this.seen, sql: way === 'server' ? 'worker' : way };
        }
    }

    end(end) {
        if (this.ended) return; // given up before
        this.ended = true;
        clearTimeout(this.last);
        outbox.set(this.job.run_id, { job_id: this.job.job_id, run_id: this.job.run_id, ...this.seen, ...end });
        sendAlarm.ring();
        if (end.outcome === 'abandoned') {
            tainted = true; // this worker gets no more jobs: it ends once the others have
            drain();
        }
    }
}

async function register() {
    const sentAt = now();
    [{ id: worker }] = await work.call(REGISTER, [hostname(), process.pid, queues, concurrency, lease / 1000, worker]);
    renewed(sentAt);
}

let leaseTimer;
function renewed(sentAt) { // when the lease runs out others start these jobs: shortly before, they must stop here
    clearTimeout(leaseTimer);
    leaseTimer = setTimeout(() => {
        for (const run of held.values()) run.stop('lease', 'the lease could not be renewed');
    }, sentAt + 0.9 * lease - now());
}

let [beatNow, beatAt] = [true, 0];
function look() {
    beatNow = true;
    beatAlarm.ring();
}

let early = new Map(); // verdicts on runs whose fetch has not been answered yet
async function beat() {
    const due = Math.min(beatAt + Math.min(lease / 3, poll), ...[...held.values()].map((run) => run.lookAt));
    if (!beatNow && now() < due) await beatAlarm.sleep(due - now());
    if (drained) return false;
    if (!beatNow && now() < due) return true; // other runs, another due
    beatNow = false;
    const sentAt = beatAt = now();
    const observed = [...held.values()].filter((run) => run.seen)
        .map(({ job, seen }) => ({ job_id: job.job_id, run_id: job.run_id, ...seen }));
    let verdicts;
    try {
        verdicts = await control.call(HEARTBEAT, [worker, [...held.keys()], JSON.stringify(observed)]);
    } catch (error) {
        beatNow = true;
        if (error.code !== 'PJ003') throw error;
        say('the lease had run out: registers again');
        await register(); // under its id: what nobody has taken yet stays its own
        return true;
    }
    renewed(sentAt);
    early = new Map(verdicts.map((verdict) => [verdict.run_id, verdict]));
    for (const verdict of verdicts) await held.get(verdict.run_id)?.hear(verdict);
    return true;
}

async function fetchJobs() {
    if (stopping) return false;
    const free = concurrency - held.size;
    const sentAt = now();
    const jobs = free > 0 ? await work.call(FETCH, [worker, free, queues, Object.keys(tasks)]) : [];
    if (now() - sentAt > lease) return true; // answered too late: what is not listed is given back
    for (const job of jobs) {
        const run = new Run(job);
        if (stopping) run.end({ outcome: 'interrupted' });
        else run.start();
        if (early.has(job.run_id)) run.hear(early.get(job.run_id)).catch(look);
    }
    beatAlarm.ring(); // perhaps one has a timeout
    if (jobs.length < Math.max(free, 1)) await fetchAlarm.sleep(poll);
    return true;
}

async function sendEnds() {
    if (outbox.size > 0) await report([...outbox.values()].slice(0, 100));
    else if (fetched && held.size === 0) return false;
    else await sendAlarm.sleep(Infinity);
    return true;
}

async function report(ends) { // again until answered: a replay is answered what was written the first time
    let answers;
    try {
        answers = await work.call(FINISH, [JSON.stringify(ends)]);
    } catch (error) {
        const refused = /^(PJ004|22|54)/.test(error.code) || error instanceof TypeError;
        if (!refused || ends[0].bare) throw error;
        // One can't be stored. What a task produced must not keep its job, or the others, from ending.
        if (ends.length > 1) for (const end of ends) await report([end]);
        else {
            const { job_id, run_id, outcome } = ends[0];
            await report([{ job_id, run_id, outcome, message: 'its result or error can\'t be stored', bare: true }]);
        }
        return;
    }
    for (const { job_id, run_id, status } of answers.filter((answer) => answer.status !== 'locked')) {
        outbox.delete(run_id);
        held.delete(run_id);
        say(`job ${job_id}: ${status}, run ${run_id}`);
        fetchAlarm.ring();
    }
    if (ends.every(({ run_id }) => outbox.has(run_id))) await pause(200); // somebody's open transaction holds the job
}

async function keepHouse() {
    await pause(lease / 3 * (0.75 + Math.random() / 2));
    for (const statement of HOUSEKEEPING) await work.call(statement);
}

function drain() {
    stopping = true;
    say(`stops, with ${held.size} jobs`);
    for (const alarm of [fetchAlarm, sendAlarm]) alarm.ring();
}

let signals = 0;
function stop() { // the first time: let the jobs end; the second: ask them to stop, they will run again; then go
    signals += 1;
    drain();
    const ask = () => [...held.values()].forEach((run) => run.stop('shutdown', 'the worker shuts down'));
    if (signals === 1) setTimeout(ask, grace);
    else if (signals === 2) ask();
    else process.exit(1); // its lease runs out
}

function leave(error) { // what trying again does not help
    if (!/^(PJ|28|3D|3F|42)/.test(error.code)) return;
    say(`${error.message}${error.code === '42883' ? ': install pljobs 0.2.0 or newer in this database' : ''}`);
    process.exit(1);
}

await repeat('start', async () => {
    const [{ release, oldest, newest }] = await work.call(VERSION);
    say(`pljobs ${release} speaks contracts ${oldest} to ${newest}, this worker ${CONTRACT}`);
    if (CONTRACT < oldest || CONTRACT > newest) process.exit(1);
    await register();
    return false;
}, leave);
say(`worker ${worker} started`);
process.on('SIGTERM', stop).on('SIGINT', stop);
const beating = repeat('heartbeat', beat);
const fetching = repeat('fetch', fetchJobs, (error) => { if (error.code === 'PJ003') look(); });
const sending = repeat('report', sendEnds);
repeat('housekeeping', keepHouse);
await fetching; // until it is told to stop; all else goes on until the last end is answered
fetched = true;
sendAlarm.ring();
await sending;
drained = true;
beatAlarm.ring();
await beating;
await work.call('SELECT pljobs.unregister_worker_v1($1)', [worker]).catch(() => {}); // a courtesy
say('ended');
process.exit(tainted ? 6 : 0);
