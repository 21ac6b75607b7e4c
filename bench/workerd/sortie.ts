import { serve } from "../../src/adapters/cloudflare.ts";
import { app } from "./app.ts";

export default serve(app);
