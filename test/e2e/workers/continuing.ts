import { serve } from "sortie/cloudflare";
import { app } from "./app.ts";

interface Env {
  readonly NATS_URL: string;
  /** A queue whose consumer is this Worker. */
  readonly NEXT: { sendBatch(messages: readonly { body: unknown }[]): Promise<unknown> };
}

export default serve(app, {
  budget: "2s",
  onMore: (places, { NEXT }: Env) => NEXT.sendBatch(places.map((body) => ({ body }))),
});
