import { serve } from "../../src/adapters/cloudflare.ts";
import { createHub, viaHub } from "../../src/adapters/hub.ts";
import { app } from "./app.ts";

export class Hub extends createHub({ idle: "100ms" }) {} // so that no run has what another one has opened

interface Env {
  NATS_URL: string;
  HUB: { getByName(name: string): unknown };
}

const ways = {
  "/direct": serve<Env>(app),
  "/hub": serve(app, { hub: viaHub((env: Env) => env.HUB) }),
  "/hubs": serve(app, { hub: viaHub((env: Env) => env.HUB, { connections: 4 }) }),
};

/** The same app, published to in the way that the path begins with. */
export default {
  async fetch(request: Request, env: Env, ctx: Parameters<(typeof ways)["/hub"]["fetch"]>[2]): Promise<Response> {
    const [, way = ""] = /^(\/\w+)\//.exec(new URL(request.url).pathname) ?? [];
    const handlers = ways[way as keyof typeof ways];
    return handlers.fetch(new Request(request.url.replace(way, ""), request), env, ctx);
  },
};
