// Tasks for `node worker.mjs tasks.mjs`. Defer one: SELECT pljobs.defer_job('node.count', '{"to": 60}');
import { setTimeout as pause } from 'node:timers/promises';

async function count({ to = 10 }, { signal, progress }) {
    for (let at = 1; at <= to; at += 1) {
        await pause(1000, undefined, { signal }); // rejects with an AbortError when the job should stop
        progress(at / to, `${at} of ${to}`);
    }
    return { counted: to };
}

async function unreliable(args, { job }) {
    if (job.attempts < 3) throw new Error('not yet');
    return job.attempts;
}
unreliable.retryIn = (attempts) => (attempts < 5 ? 2 ** attempts : undefined); // seconds; undefined: it has failed

export default { 'node.count': count, 'node.unreliable': unreliable };
