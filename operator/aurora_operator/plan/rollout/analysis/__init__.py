"""What does live traffic say of a version?"""
