// What worker.mjs stands on: a connection that is made anew when it breaks, retries with pauses, sleeps cut short.
import { createRequire } from 'node:module';
import { setTimeout as pause } from 'node:timers/promises';

const pg = createRequire(import.meta.url)('pg'); // not by import: that does not find Debian's node-pg

// A role's or database's defaults must not change what a worker does.
const SESSION = `SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off;
    SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0;
    SET lock_timeout = '500ms'`;

export const say = (text) => console.log(text.replace(/\p{Cc}/gu, ' '));

export class Link { // a connection: opened when it is needed, thrown away when anything is wrong with it
    turn = Promise.resolve();

    constructor(name, patience, prepare = () => {}, lost = () => {}) {
        Object.assign(this, { name, patience, prepare, lost });
    }

    call(text, values) { // a statement in a transaction of its own; one at a time
        const answer = this.turn.then(() => this.query(text, values));
        this.turn = answer.catch(() => {});
        return answer;
    }

    async query(text, values) {
        const link = (this.opened ??= this.open());
        try {
            return (await (await link.ready).query(text, values)).rows;
        } catch (error) {
            if (!/^(PJ|22)/.test(error.code)) link.drop(); // the next call opens another
            throw error;
        }
    }

    open() {
        const client = new pg.Client({
            application_name: `pljobs node ${this.name}`, keepAlive: true, connectionTimeoutMillis: this.patience,
            query_timeout: this.patience, // a frozen peer, which keepalives don't notice
        });
        const link = {
            drop: () => {
                client.end().catch(() => {});
                if (this.opened !== link) return;
                this.opened = null;
                this.lost();
            },
            ready: (async () => {
                await client.connect();
                await client.query(SESSION);
                await this.prepare(client);
                if (this.before) say(`${this.name}: connected again`);
                this.before = true;
                return client;
            })(),
        };
        client.on('error', link.drop).on('end', link.drop);
        return link;
    }
}

export class Alarm { // a sleep that can be cut short, once or before it begins
    ring() {
        this.rung = true;
        this.wake?.();
    }

    async sleep(ms) {
        let timer;
        if (!this.rung && ms > 0) {
            await new Promise((wake) => {
                this.wake = wake;
                timer = setTimeout(wake, Math.min(ms, 1e9));
            });
        }
        clearTimeout(timer);
        this.rung = false;
    }
}

// Calls `step` until it answers false; after an error again, with growing pauses. Says what goes wrong once, and when
// it works again. `failed` sees each error first.
export async function repeat(what, step, failed = () => {}) {
    for (let wait = 100, said = ''; ;) {
        try {
            const more = await step();
            if (said) say(`${what}: works again`);
            if (more === false) return;
            [wait, said] = [100, ''];
        } catch (error) {
            failed(error);
            const text = `${error.code ?? ''} ${error.message}`.trim();
            if (text !== said) say(`${what}: ${text}; trying again`);
            said = text;
            await pause(wait * (0.5 + Math.random() / 2));
            wait = Math.min(2 * wait, 5000);
        }
    }
}
