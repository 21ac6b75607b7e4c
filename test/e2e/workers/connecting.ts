import { serve } from "sortie/cloudflare";
import { app } from "./app.ts";

const worker = serve(app);

// A publish with the settings that its body names, and what comes of it.
export default {
  async fetch(request: Request, _: unknown, ctx: Parameters<typeof worker.fetch>[2]): Promise<Response> {
    const settings = (await request.json()) as object;
    const publish = new Request(new URL("/publish/jobs.do", request.url), {
      method: "POST",
      headers: { Authorization: "Bearer t", "Content-Type": "application/json" },
      body: JSON.stringify({ n: 1 }),
    });
    return worker.fetch(publish, { ...settings, SORTIE_PUBLISH_TOKEN: "t" }, ctx);
  },
};
