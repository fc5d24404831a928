"""Models as Moonshot and DeepSeek published them, never read whole: a tensor is read when it is used."""
