import { serve } from "sortie/cloudflare";
import { app } from "./app.ts";

export default serve(app, { kick: true });
