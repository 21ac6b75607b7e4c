import * as z from "zod";
import { createApp } from "../../src/app.ts";
import { defineStream } from "../../src/define/stream.ts";

export const app = createApp({
  streams: [defineStream("BENCH_HUB", { subjects: { "bench.hub": z.object({ n: z.int() }) } })],
});
