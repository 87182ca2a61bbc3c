// The tasks of worker_process.py in Node.js: what they do goes into the table public.side, at once.
import { createRequire } from 'node:module';
import { setTimeout as pause } from 'node:timers/promises';

const pg = createRequire(new URL('../examples/node/', import.meta.url))('pg');
// Straight to the server, whatever lies between it and the worker.
const pool = new pg.Pool({ host: process.env.SIDE_HOST, port: process.env.SIDE_PORT, max: 8, idleTimeoutMillis: 0 });
pool.on('error', () => {}); // a connection that was cut while it was idle

async function note({ job }, what) {
    await pool.query('INSERT INTO public.side (job_id, run_id, pid, what) VALUES ($1, $2, $3, $4)',
        [job.job_id, job.run_id, process.pid, what]);
}

async function told({ signal }, what) {
    for (;;) {
        const { rowCount } = await pool.query('SELECT FROM public.side WHERE what = $1', [what]);
        if (rowCount > 0) return;
        await pause(20, undefined, { signal });
    }
}

async function fails() {
    throw new Error('as told');
}
fails.retryIn = (attempts) => {
    if (attempts > 1) throw new Error('no way to retry');
    return 0;
};

export default {
    async quick(args, context) {
        await note(context, 'start');
        await note(context, 'end');
        return 'node';
    },
    async until_told(args, context) {
        await note(context, 'start');
        await told(context, 'go');
        await note(context, 'end');
        return 'node';
    },
    async deaf(args, context) { // hears of no abort
        await note(context, 'start');
        await told({}, 'go');
        await note(context, 'end');
        return 'node';
    },
    async forever(args, context) {
        await note(context, 'start');
        context.progress(0.5, 'half of it');
        try {
            await pause(1e9, undefined, { signal: context.signal });
        } finally {
            await note(context, 'cancelled');
        }
    },
    async never(args, context) { // settles never, whatever it is told
        await note(context, 'start');
        await new Promise(() => {});
    },
    async returns_nul() {
        return 'a\0b';
    },
    fails,
};
