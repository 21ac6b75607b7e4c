import { serve } from "sortie/cloudflare";
import { createHub, viaHub } from "sortie/cloudflare/hub";
import { app } from "../../../functions/app.ts";

// The sample system by way of a hub.
export class Hub extends createHub() {}

interface Env {
  NATS_URL: string;
  HUB: { getByName(name: string): unknown };
}

export default serve(app, { hub: viaHub((env: Env) => env.HUB) });
