import { createApp, defineConsumer, defineStream } from "sortie";
import { serve } from "sortie/cloudflare";
import { createHub, viaHub } from "sortie/cloudflare/hub";
import * as z from "zod";

const jobs = defineStream("JOBS", {
  subjects: { "jobs.do": z.int(), "jobs.kept": z.int() },
  schedules: "function",
  maxAge: "1d",
});
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const worker = defineConsumer(jobs, "worker", { filter: "jobs.do", deadLetter: "dead.jobs" });

/** A job is a line in the log when it is handled. */
export const app = createApp({ streams: [jobs, dead] }).on(worker, ({ data }) => {
  console.log(JSON.stringify({ event: "done", n: data }));
});

export class Hub extends createHub() {
  evict(): void {
    this.ctx.abort("evicted");
  }
}
export class Narrow extends createHub({ outstanding: 2, idle: "100ms" }) {}

interface Hubs {
  getByName(name: string): { evict(): Promise<void> };
}
interface Env {
  NATS_URL: string;
  HUB: Hubs;
  NARROW: Hubs;
}

const wide = viaHub((env: Env) => env.HUB);
const handlers = serve(app, { hub: wide, budget: "1500ms" });
const narrow = serve(app, { hub: viaHub((env: Env) => env.NARROW) });

export default {
  ...handlers,
  async fetch(request: Request, env: Env, ctx: Parameters<typeof handlers.fetch>[2]): Promise<Response> {
    if (request.url.endsWith("/evict")) {
      await env.HUB.getByName("sortie-hub-0")
        .evict()
        .catch(() => {});
      return new Response();
    }
    if (request.url.endsWith("/leave")) {
      const connection = await wide(env, 5_000);
      connection.subscribe("left.behind", { callback() {} });
      await connection.request("$JS.API.INFO", ""); // it is there
      return new Response(); // and nobody closes anything
    }
    return (request.headers.has("X-Narrow") ? narrow : handlers).fetch(request, env, ctx);
  },
};
