"""What does the trainer read of the target, and what of the target may a draft start from?"""
